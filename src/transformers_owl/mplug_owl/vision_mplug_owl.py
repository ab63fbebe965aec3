# SPDX-License-Identifier: Apache-2.0
"""The vision model f_V: the releases' own ViT, or a vision model of the library that gives the patches of an image.

A type of the library that is called in another way than most has an entry in `CALLS`; what else an Owl needs to know
of its vision model the functions here find out.
"""

import copy
import math
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import AutoModel

from .configuration_mplug_owl import MplugOwlVisionConfig


def call_with_patches(tower, frames: torch.Tensor, **kwargs):
    """SigLIP 2 for images of any shape (NaFlex) takes patches, each flattened to pixel rows with their colours."""
    rows, columns = patch_grid(tower.config)
    side = tower.config.patch_size
    patches = frames.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)
    shapes = torch.tensor([[rows, columns]], device=frames.device).expand(len(frames), -1)
    return tower(patches, pixel_attention_mask=patches.new_ones(patches.shape[:2]), spatial_shapes=shapes, **kwargs)


# How a type of vision model is called with frames (N, 3, S, S), where that is not the usual way.
CALLS = {"siglip2_vision_model": call_with_patches}


def leave_out_pooling(tower: nn.Module) -> None:
    """SigLIP and AIMv2 pool their patches by a head that an Owl does not use: its weights stay, but it does not run."""
    for module in tower.modules():
        if "use_head" in vars(module):
            module.use_head = False


def see(tower: Any, pixel_values: torch.Tensor, sees_videos: bool, **kwargs) -> BaseModelOutput:
    """
    Runs the vision model over images (N, 3, S, S) or the frames of videos (N, T, 3, S, S).

    Returns:
        `BaseModelOutput`: `last_hidden_state` (N, P, D) or (N, T, P, D): the leading tokens of the vision model (class
            token, registers), then the patches row by row.

    Raises:
        ValueError: for pixels of another shape or an integer dtype, and for a vision model without patch features.
    """
    config: Any = tower.config
    if is_releases_type(config):
        return tower(pixel_values, **kwargs)  # it mixes the frames of a video
    frames = flat_frames(pixel_values, config, sees_videos)
    outputs = CALLS.get(config.model_type, nn.Module.__call__)(tower, frames.to(tower.dtype), **kwargs)
    hidden_states = outputs.last_hidden_state
    if hidden_states.ndim != 3 or len(hidden_states) != len(frames) or hidden_states.shape[1] < num_patches(config):
        raise ValueError(
            f"`{config.model_type}` cannot be the vision model: it gave features of shape {tuple(hidden_states.shape)} "
            f"for {len(frames)} images of {num_patches(config)} patches, but the shape must be (images, patches, "
            f"{config.hidden_size}). Choose a ViT such as CLIP, SigLIP or DINOv2."
        )
    return BaseModelOutput(
        last_hidden_state=hidden_states.view(*pixel_values.shape[:-3], *hidden_states.shape[1:]),
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def is_releases_type(config: Any) -> bool:
    """Whether a vision model is the releases' ViT. Its class may come from another copy of this code."""
    return config.model_type == MplugOwlVisionConfig.model_type


def flat_frames(pixel_values: torch.Tensor, config: Any, sees_videos: bool) -> torch.Tensor:
    """All frames (N * T, 3, S, S) of images or videos, after a check of their shape and dtype."""
    size = (config.num_channels, image_side(config), image_side(config))
    fits = pixel_values.ndim in (4, 5) and tuple(pixel_values.shape[-3:]) == size
    if not fits or 0 in pixel_values.shape:
        raise ValueError(
            f"The pixels have shape {tuple(pixel_values.shape)}, but must be (images, {', '.join(map(str, size))}) or "
            f"(videos, frames, {', '.join(map(str, size))}): prepare them with MplugOwlProcessor."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"The pixels have dtype {pixel_values.dtype}, but must be normalised floating-point values: prepare them "
            "with MplugOwlProcessor."
        )
    if pixel_values.ndim == 5 and pixel_values.shape[1] > 1 and not sees_videos:
        raise ValueError(
            "This checkpoint is an image model and takes no videos (`use_temporal` is False): use a video checkpoint, "
            "or pass single frames as images."
        )
    return pixel_values.flatten(0, -4)


def image_side(config: Any) -> int:
    """Side S in pixels of the square images that a vision model takes."""
    fields = config.to_dict()
    if not fields.get("patch_size") or not (fields.get("image_size") or fields.get("num_patches")):
        raise ValueError(
            f"`{config.model_type}` is not a vision model with patches: its configuration has no patch_size and "
            "image_size. Choose a ViT such as CLIP, SigLIP or DINOv2."
        )
    if not fields.get("image_size"):
        return patch_side(config) * math.isqrt(fields["num_patches"])
    return side_of(fields["image_size"])


def patch_side(config: Any) -> int:
    return side_of(config.patch_size)


def side_of(size: int | list[int] | tuple[int, ...]) -> int:
    """The side of a square, which some configurations give as height and width."""
    return size if isinstance(size, int) else size[0]


def patch_grid(config: Any) -> tuple[int, int]:
    """Rows and columns of the patches of an image."""
    return (image_side(config) // patch_side(config),) * 2


def num_patches(config: Any) -> int:
    return math.prod(patch_grid(config))


def tokens_and_idle_weights(config: Any) -> tuple[int, frozenset[str]]:
    """
    The number P of tokens that a vision model gives per image, and the names of its weights that do not affect them,
    such as those of a pooling head. For a model of the library both are found by running one of its layers.
    """
    if is_releases_type(config):
        return num_patches(config) + 1, frozenset()
    side = image_side(config)
    config = copy.deepcopy(config)
    config.update({"num_hidden_layers": 1, "dtype": "float32"})
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.enable_grad():
        tower = AutoModel.from_config(config).eval()
        pixels = torch.zeros(2, config.num_channels, side, side)
        tokens: Any = see(tower, pixels, sees_videos=False).last_hidden_state
        tokens.sum().backward()
    return tokens.shape[1], frozenset(name for name, weight in tower.named_parameters() if weight.grad is None)
