"""Compiled vision model and abstractor for CPUs."""

from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from .library import inductor_settings


# Eight images at once took longer (research/benchmarks/tried.py).
AT_ONCE = 4
# Weights are laid out for the products that they are in, and what is compiled is called from C++.
SETTINGS = {"freezing": True, "cpp_wrapper": True}


def compile_vision(model: Any) -> Any:
    """
    Compiles a model's vision model and abstractor for inference on a CPU. Images are then encoded four at a time, and
    the remaining ones one by one: two shapes, each of which takes a minute or two to compile at its first use, and
    memory for a second copy of these weights. Videos are encoded in groups of four frames in all, or one by one. Later
    changes of the weights have no effect.

    Args:
        model ([`MplugOwlForConditionalGeneration`] or `PeftModel`): A model on the CPU in its final dtype;
            changed in place.

    Returns:
        [`MplugOwlForConditionalGeneration`]: The same model.
    """
    inner = without_peft(model).model
    for part in (inner.vision_model, inner.abstractor):
        part.compile(dynamic=False, isolate_recompiles=True)
    inner._get_visual_features = MethodType(_look, inner)
    return model


def without_peft(model: Any) -> Any:
    """The Owl itself, where a `PeftModel` wraps it."""
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()


def _look(self, pixel_values: torch.Tensor, crop_positions: torch.Tensor | None = None, **kwargs):
    """The model's own method of this name, applied to a few images or videos at a time."""
    together = AT_ONCE if pixel_values.ndim == 4 else max(1, AT_ONCE // max(1, pixel_values.shape[1]))
    groups, left = divmod(len(pixel_values), together)
    sizes = [together] * groups + [1] * left or [0]
    parts = pixel_values.split(sizes)
    places = [None] * len(parts) if crop_positions is None else crop_positions.split(sizes)
    with inductor_settings(**SETTINGS):
        features = [
            type(self)._get_visual_features(self, part, place, **kwargs)
            for part, place in zip(parts, places, strict=True)
        ]
    return _joined(features)


def _joined(groups: list[Any]) -> Any:
    """Concatenates the outputs of the groups, or one field of them."""
    first = groups[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(groups)
    if isinstance(first, tuple):
        return tuple(_joined(list(each)) for each in zip(*groups, strict=True))
    return type(first)(**{name: _joined([group[name] for group in groups]) for name in first})
