"""Chooses the fast paths that suit a model's device."""

import logging
import time
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import CompileConfig, StaticCache

from ..mplug_owl.configuration_mplug_owl import expect
from ..mplug_owl.library_mplug_owl import CACHE_NAMES
from ..mplug_owl.vision_mplug_owl import image_side
from .compiled_vision import compile_vision, without_peft
from .library import onednn_linear
from .onednn import is_plain, use_onednn


# Rows of the products that matter, and how often each comes: the positions of an image or prompt, and single tokens.
PRODUCTS = {"latency": {256: 1, 1: 20}, "throughput": {1024: 1, 8: 20}}
CACHE_LENGTH = 2048
# What compiled images cost and gain (docs/notes/performance.md): seconds to compile, and the share of time saved.
COMPILING, SAVED = 240, 0.15
# Options of `generate` that choose another way to decode, or a cache.
OWN_WAYS = ("assistant_model", "prompt_lookup_num_tokens", "cache_implementation", "compile_config")


def optimize(model: Any, for_: str = "latency", images: int | None = None) -> Any:
    """
    Makes a model faster on its device, and logs in one line what was chosen and why. Answers stay the same up to
    rounding.

    - On a CPU, float32 products use MKL or oneDNN: both are timed for about a second on the model's largest layers.
    - On a CPU, "throughput" also uses [`compile_vision`], which takes minutes at the first images and memory for a
      second copy of vision model and abstractor. Kernels stay in the cache of `torch.compile` for later runs.
    - On other devices, `generate` decodes by a compiled step with a static cache, recorded as a CUDA graph on CUDA. The
      cache has room for 2,048 positions or the language model's context length, or for the longest call so far, so that
      later turns and longer prompts need no compilation. Beam search, assisted decoding and your own caches do not
      change.

    Args:
        model ([`MplugOwlForConditionalGeneration`] or `PeftModel`): A model on its final device and in its final
            dtype; changed in place.
        for_ (`str`, defaults to `"latency"`): "latency" for one conversation, "throughput" for many images.
        images (`int`, *optional*): Number of images to come, if known; the vision model is compiled only if that pays.

    Returns:
        [`MplugOwlForConditionalGeneration`]: The same model.

    Raises:
        ValueError: for an unknown `for_`.
    """
    expect(for_ in PRODUCTS, "for_", for_, f"one of {', '.join(map(repr, PRODUCTS))}")
    owl = without_peft(model)
    if owl.device.type != "cpu":
        compile_decoding(owl, CompileConfig(fullgraph=True))
        chosen = [
            f"a static cache of {_cache_length(owl)} positions and a compiled step (the first answer compiles it, "
            "which takes a minute or more)"
        ]
    else:
        chosen = [_choose_products(owl, for_)]
        if for_ == "throughput":
            chosen.append(_choose_images(owl, images))
    logging.getLogger(__name__).warning(f"optimize for {for_} on {owl.device}: {'; '.join(chosen)}.")
    return model


def compile_decoding(model: Any, how: CompileConfig) -> None:
    """Makes `generate` compile its step where it can, and use a static cache where it makes one."""
    model.generate = MethodType(partial(_generate, how), model)


def _choose_products(model: Any, for_: str) -> str:
    parts = (model.model.vision_model, model.model.language_model)
    layers = [max(found, key=lambda layer: layer.weight.numel()) for part in parts if (found := _float32_layers(part))]
    if not layers or not torch.backends.mkldnn.is_available():
        return "products unchanged (no float32 layers for oneDNN)"
    ways = (torch.nn.functional.linear, onednn_linear)
    mkl, onednn = (sum(_cost(way, layer, PRODUCTS[for_]) for layer in layers) for way in ways)
    if onednn < 0.95 * mkl:
        use_onednn(model)
        return f"products by oneDNN ({onednn / mkl:.2f} times MKL's time here)"
    return f"products by MKL (oneDNN takes {onednn / mkl:.2f} times as long here)"


def _float32_layers(part: nn.Module) -> list[nn.Linear]:
    return [layer for layer in part.modules() if type(layer) is nn.Linear and is_plain(layer.weight)]


@torch.inference_mode()
def _cost(way: Callable, layer: nn.Linear, products: dict[int, int]) -> float:
    inputs = {rows: torch.ones(rows, layer.in_features) for rows in products}
    return sum(
        times * seconds_of(lambda rows=rows: way(inputs[rows], layer.weight, layer.bias))  # type: ignore[misc]
        for rows, times in products.items()
    )


def seconds_of(call: Callable[[], Any], repeats: int = 5) -> float:
    """The minimum over some repeats, after a warm-up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _choose_images(model: Any, images: int | None) -> str:
    config = model.config.vision_config
    side = image_side(config)
    pixels = torch.zeros(1, config.num_channels, side, side, dtype=model.dtype)
    with torch.inference_mode():
        seconds = seconds_of(lambda: model.get_image_features(pixels), repeats=2)
    if images is not None and images * seconds * SAVED < COMPILING:
        return f"images not compiled ({images} of {seconds:.2f} s each are too few for minutes of compilation)"
    compile_vision(model)
    return "images compiled (the first ones take minutes, and memory for a second copy of the weights)"


def _cache_length(model: Any) -> int:
    return int(min(CACHE_LENGTH, model.context_length))


def _generate(how: CompileConfig, self, inputs: torch.Tensor | None = None, *args, **kwargs):
    config = kwargs.get("generation_config") or self.generation_config
    asked = {**vars(config), **kwargs}
    cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
    if (asked.get("num_beams") or 1) == 1 and all(asked.get(name) is None for name in OWN_WAYS):
        if cache is None:
            kwargs |= {"cache_implementation": "static", "max_cache_len": _cache_length(self)}
        if cache is None or isinstance(cache, StaticCache):
            kwargs["compile_config"] = how
    return type(self).generate(self, inputs, *args, **kwargs)
