"""Attempts to make inference faster, compared with the current code, in float32 on CPU.

python research/benchmarks/tried.py [--pairs 3] [--json FILE]

The model is that of `inference.py`: ViT-L/14, the abstractor and a LLaMA of 12 layers x 1024. A row gives the
milliseconds of the attempt ("owl") and of the current code ("other"), and the median ratio of the pairs. Compiling
takes minutes. The last row is the other way round: it compares a layer's convolution over the 4 frames of a video in
the current code with `nn.Conv1d`, which needs the frames moved to the end and back.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from inference import POSITIONS, Side, owl
from side_by_side import TEXT, VISION, Report, alternate, decode_seconds, ready, seconds
from transformers import StaticCache

from transformers_owl.inference import compile_vision, compiled_vision, use_onednn
from transformers_owl.mplug_owl.modeling_mplug_owl import MplugOwlConvOverTime


FRAMES, PATCHES, WIDTH = 4, 256, VISION["hidden_size"] // 2


class LaidOut(torch.nn.Linear):
    """By oneDNN, with the weight laid out for it once."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self.laid_out, self.bias, "none", [], "")


def laid_out(model):
    for layer in model.modules():
        if type(layer) is torch.nn.Linear:
            layer.laid_out = torch.ops.mkldnn._reorder_linear_weight(layer.weight, PATCHES)
            layer.__class__ = LaidOut
    return model


def compiled(function: Callable, freezing: bool = False) -> Callable:
    torch._dynamo.reset()
    torch._inductor.config.freezing = freezing
    return torch.compile(function, mode="max-autotune-no-cudagraphs" if freezing else "default", dynamic=False)


def static_cache(side: Side) -> StaticCache:
    return StaticCache(config=side.model.config.text_config, max_cache_len=POSITIONS)


def encodings(side: Side) -> list[Callable[[], float]]:
    """By compiled code: all images at once, and as many as `compile_vision` takes."""
    compile_vision(side.model)

    def encode(at_once: int) -> float:
        compiled_vision.AT_ONCE = at_once
        return side.encode()

    return [lambda count=count: encode(count) for count in (len(side.pixels), compiled_vision.AT_ONCE)]


def convolutions() -> tuple[Callable[[], float], Callable[[], float]]:
    frames = torch.randn(1, FRAMES, PATCHES, WIDTH)
    ours = MplugOwlConvOverTime(WIDTH, WIDTH, kernel_size=3, padding=1, groups=WIDTH)

    def frames_last() -> torch.Tensor:
        over_time = torch.nn.Conv1d.forward(ours, frames.permute(0, 2, 3, 1).flatten(0, 1))
        return over_time.unflatten(0, (1, -1)).permute(0, 3, 1, 2).flatten(0, 1)

    return lambda: seconds(lambda: ours(frames)), lambda: seconds(frames_last)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = Report()
    torch.manual_seed(0)
    model = ready({"owl": owl(VISION, TEXT)}, torch.float32)["owl"]
    side = Side("owl", model, 1, 1)

    def add(
        name: str,
        tried: Callable[[], float],
        other: Callable[[], float],
        pairs: int = arguments.pairs,
        beside: str = "as it is",
        batch: int = 1,
    ) -> None:
        row = alternate(pairs, tried, other)
        report.add(name, batch, torch.float32, {"beside": beside, "images": 1, **row})

    by_onednn = Side("owl", use_onednn(copy.deepcopy(model)), 1, 1)
    anew = Side("owl", laid_out(copy.deepcopy(model)), 1, 1)
    add("encode, weights laid out", anew.encode, by_onednn.encode, beside="use_onednn")
    add("decode, weights laid out", anew.decode, by_onednn.decode, beside="use_onednn")
    del by_onednn, anew
    cache = static_cache(side)
    add("decode, static cache", lambda: decode_seconds(model, side.prompt, cache, model), side.decode)
    step = compiled(model.forward)
    add("decode, compiled", lambda: decode_seconds(model, side.prompt, static_cache(side), step), side.decode)
    for name, freezing in (("encode, compiled", False), ("encode, compiled, frozen", True)):
        encode = compiled(lambda: model.get_image_features(side.pixels, return_dict=True).pooler_output, freezing)
        add(name, lambda encode=encode: seconds(encode), side.encode)
    many = Side("owl", copy.deepcopy(model), 8, 1)
    add("encode, compiled, all at once", *encodings(many), beside="compile_vision", batch=8)
    add("convolution over time", *convolutions(), pairs=21)
    if arguments.json is not None:
        report.write(arguments.json)


if __name__ == "__main__":
    main()
