"""A fresh Owl from a vision model and a language model: where stage 1 starts."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .mplug_owl.configuration_mplug_owl import MplugOwlConfig, MplugOwlVisionConfig
from .mplug_owl.modeling_mplug_owl import MplugOwlForConditionalGeneration
from .mplug_owl.vision_mplug_owl import patch_grid, patch_side, tokens_and_idle_weights


CLIP_TYPES = ("clip", "clip_vision_model")
POSITIONS = re.compile(r"(^|\.)position_embeddings?(\.weight)?$")
# `(CLIP's name, ours)`, in order; ours keeps the class token and the positions as tensors of three dimensions.
CLIP_NAMES = (
    ("embeddings.class_embedding", "embeddings.cls_token"),
    ("embeddings.patch_embedding.", "embeddings.patch_embed."),
    ("embeddings.position_embedding.weight", "embeddings.position_embedding"),
    ("pre_layrnorm.", "embeddings.pre_layernorm."),
    ("encoder.layers.", "layers."),
    (".layer_norm1.", ".input_layernorm."),
    (".layer_norm2.", ".post_attention_layernorm."),
)
CLIP_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout",
)  # fmt: skip


Rename = Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]


def build_owl(
    vision: PreTrainedModel,
    language_model: PreTrainedModel,
    num_query_tokens: int = 64,
    num_abstractor_layers: int = 6,
    use_temporal: bool = False,
    image_size: int | None = None,
    max_crops: int = 1,
    **fields,
) -> MplugOwlForConditionalGeneration:
    """
    An Owl with the weights of both models and a new abstractor (paper, section 3.1), in the language model's type.

    Args:
        vision (`PreTrainedModel`): A vision model of the library that gives the patches of an image, such as
            `SiglipVisionModel` or `Dinov2Model`. A `CLIPVisionModel` becomes the releases' ViT, with its own epsilon of
            the layer norms.
        language_model (`PreTrainedModel`): A causal language model of the library.
        num_query_tokens (`int`, defaults to 64): Learned queries of the abstractor.
        num_abstractor_layers (`int`, defaults to 6): Layers of the abstractor.
        use_temporal (`bool`, defaults to `False`): Whether the Owl takes videos; the new layers start at random.
        image_size (`int`, *optional*): Side of the images in pixels; by default that of the vision model. Another size
            interpolates its position embeddings.
        max_crops (`int`, defaults to 1): Maximum number of cells that an image is also cut into; 1 cuts none.
        fields: Further fields of [`MplugOwlConfig`], such as `image_token_id=processor.image_token_id` where the
            tokenizer has ids for placeholders inside the language model's vocabulary.

    Raises:
        ValueError: for a language model that is not a causal decoder with a cache and one linear head, for a vision
            model without patch features, and for an `image_size` that is not a multiple of its patch size.
    """
    config = fresh_config(
        vision.config,
        language_model.config,
        visual_abstractor_config={"num_hidden_layers": num_abstractor_layers},
        use_temporal=use_temporal,
        image_size=image_size,
        max_crops=max_crops,
        num_query_tokens=num_query_tokens,
        **fields,
    )
    model: Any = MplugOwlForConditionalGeneration(config)
    given = ((rename_vision(vision.config, config), vision), (rename_text(language_model, model), language_model))
    weights = dict(rename(name, value) for rename, part in given for name, value in part.state_dict().items())
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert all("temporal" in name or name.startswith("model.abstractor.") for name in missing), missing
    assert not unexpected, unexpected
    return model.to(language_model.dtype)


def fresh_config(
    vision: PreTrainedConfig,
    text: PreTrainedConfig,
    visual_abstractor_config: dict | None = None,
    use_temporal: bool = False,
    image_size: int | None = None,
    max_crops: int = 1,
    **fields,
) -> MplugOwlConfig:
    """
    Configuration of an Owl from those of its parts, the abstractor as in the release.

    Args:
        vision (`PreTrainedConfig`): Configuration of the vision model.
        text (`PreTrainedConfig`): Configuration of the language model.
        visual_abstractor_config (`dict`, *optional*): Fields of the abstractor's configuration to override.
        use_temporal, image_size, max_crops: As in [`build_owl`].
        fields: Further fields of [`MplugOwlConfig`].
    """
    ours: Any = copy.deepcopy(vision)
    if vision.model_type in CLIP_TYPES:
        ours = MplugOwlVisionConfig(**{name: vision.to_dict()[name] for name in CLIP_FIELDS}, use_temporal=use_temporal)
    if image_size is not None:
        set_image_size(ours, image_size)
    tokens_and_idle_weights(ours)
    abstractor = {
        "hidden_size": ours.hidden_size,
        "intermediate_size": gated_width(ours.hidden_size),
        "num_attention_heads": ours.num_attention_heads,
        "use_temporal": use_temporal,
        "max_crops": max_crops,
    }
    return MplugOwlConfig(
        vision_config=ours,
        visual_abstractor_config={**abstractor, **(visual_abstractor_config or {})},
        text_config=text,
        **fields,
    )


def set_image_size(vision: Any, side: int) -> None:
    """Sets the image size of a vision model's configuration, in pixels."""
    patch = patch_side(vision)
    if side % patch:
        raise ValueError(f"image_size is {side}, but must be a multiple of the patch size {patch}.")
    size = vision.to_dict().get("image_size")
    if size is None:
        vision.update({"num_patches": (side // patch) ** 2})
    else:
        vision.update({"image_size": side if isinstance(size, int) else type(size)([side, side])})


def gated_width(width: int) -> int:
    """The release's width of the gated feed-forward layers: two thirds of four times 1024, in steps of 256."""
    return 256 * -(-(4 * width * 2 // 3) // 256)


def rename_vision(theirs: PreTrainedConfig, owl: MplugOwlConfig) -> Rename:
    """Maps a weight of this vision model to the Owl's; position embeddings are interpolated to its image size."""
    old, new = patch_grid(theirs), patch_grid(owl.vision_config)

    def rename(name: str, value: torch.Tensor) -> tuple[str, torch.Tensor]:
        if theirs.model_type in CLIP_TYPES:
            for before, after in CLIP_NAMES:
                name = name.replace(before, after)
            if name.endswith(("cls_token", "position_embedding")):
                value = value.reshape(1, -1, value.shape[-1])
        if POSITIONS.search(name) and old != new:
            value = resize_positions(value, old, new)
        return f"model.vision_model.{name}", value

    return rename


def resize_positions(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """
    Position embeddings for another grid of patches, by bicubic interpolation as for a ViT at another resolution.

    Args:
        table (`torch.Tensor` (..., tokens, width)): Position embeddings of leading tokens, if any, and of the patches.
        old, new (`tuple[int, int]`): Rows and columns of the two grids.
    """
    first, patches = table.split([table.shape[-2] - math.prod(old), math.prod(old)], dim=-2)
    image = patches.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    image = nn.functional.interpolate(image, size=new, mode="bicubic")
    resized = image.permute(0, 2, 3, 1).reshape(*patches.shape[:-2], math.prod(new), -1).to(table.dtype)
    return torch.cat([first, resized], dim=-2)


def rename_text(language_model: PreTrainedModel, owl: MplugOwlForConditionalGeneration) -> Rename:
    """Maps a weight of this causal language model to the Owl's."""
    named = {id(module): name for name, module in language_model.named_modules()}
    head = named[id(language_model.get_output_embeddings())]
    body = owl.causal_head.body_name
    prefixes = {f"{body}.": "model.language_model.", f"{head}.": "lm_head."}
    if language_model.config.model_type == "bloom":
        prefixes = {"transformer.word_embeddings_layernorm.": "model.embedding_norm.", **prefixes}

    def rename(name: str, value: torch.Tensor) -> tuple[str, torch.Tensor]:
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        return prefixes[prefix] + name.removeprefix(prefix), value

    return rename
