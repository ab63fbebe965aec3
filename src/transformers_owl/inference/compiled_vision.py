"""Compiled code for what looks at images on a CPU."""

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
    Compiles a model's vision model and abstractor for inference on a CPU. Images are then looked at four at a time,
    and those left over one by one: two shapes, each of which takes a minute or two to compile when it first comes, and
    the memory of these weights once more. Of videos, as many are looked at together as have four frames, or one. The
    weights are those of that moment.

    Args:
        model ([`MplugOwlForConditionalGeneration`] or `PeftModel`): A model on the CPU, in the type that it will keep.
            It is changed in place, and returned.
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
    """What the class of the model has under this name, for some images or videos at a time."""
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
    """One output, or a field of one, from those of the groups: tensors end to end."""
    first = groups[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(groups)
    if isinstance(first, tuple):
        return tuple(_joined(list(each)) for each in zip(*groups, strict=True))
    return type(first)(**{name: _joined([group[name] for group in groups]) for name in first})
