"""A fresh Owl from a CLIP vision model and a language model: where stage 1 starts."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig, PreTrainedModel

from .mplug_owl.configuration_mplug_owl import MplugOwlConfig
from .mplug_owl.modeling_mplug_owl import MplugOwlForConditionalGeneration


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
    vision: CLIPVisionModel,
    language_model: PreTrainedModel,
    num_query_tokens: int = 64,
    num_abstractor_layers: int = 6,
    use_temporal: bool = False,
    **fields,
) -> MplugOwlForConditionalGeneration:
    """
    An Owl with the weights of both models and a new abstractor (paper, section 3.1), in the language model's type.

    Args:
        vision (`CLIPVisionModel`): Becomes the vision model, with its own epsilon of the layer norms.
        language_model (`PreTrainedModel`): A causal language model of the library.
        num_query_tokens (`int`, defaults to 64): Learned queries of the abstractor.
        num_abstractor_layers (`int`, defaults to 6): Layers of the abstractor.
        use_temporal (`bool`, defaults to `False`): Whether the Owl shall see videos; the new layers start at random.
        fields: Further fields of [`MplugOwlConfig`], such as `image_token_id=processor.image_token_id` where the
            tokenizer has ids for placeholders inside the language model's vocabulary.

    Raises:
        ValueError: for a language model that is no causal decoder with a cache and one linear head.
    """
    config = fresh_config(
        vision.config,
        language_model.config,
        vision_config={"use_temporal": use_temporal},
        visual_abstractor_config={"num_hidden_layers": num_abstractor_layers},
        num_query_tokens=num_query_tokens,
        **fields,
    )
    model: Any = MplugOwlForConditionalGeneration(config)
    given = ((rename_vision, vision), (rename_text(language_model, model), language_model))
    weights = dict(rename(name, value) for rename, part in given for name, value in part.state_dict().items())
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert all("temporal" in name or name.startswith("model.abstractor.") for name in missing), missing
    assert not unexpected, unexpected
    return model.to(language_model.dtype)


def fresh_config(
    clip: CLIPVisionConfig,
    text: PreTrainedConfig,
    vision_config: dict | None = None,
    visual_abstractor_config: dict | None = None,
    **fields,
) -> MplugOwlConfig:
    """
    Configuration of an Owl from those of its parts, the abstractor as in the release.

    Args:
        clip (`CLIPVisionConfig`): Of the vision model.
        text (`PreTrainedConfig`): Of the language model.
        vision_config, visual_abstractor_config (`dict`, *optional*): Fields with values of one's own.
        fields: Further fields of [`MplugOwlConfig`].
    """
    abstractor = {
        "hidden_size": clip.hidden_size,
        "encoder_hidden_size": clip.hidden_size,
        "intermediate_size": gated_width(clip.hidden_size),
        "num_attention_heads": clip.num_attention_heads,
    }
    return MplugOwlConfig(
        vision_config={**{name: clip.to_dict()[name] for name in CLIP_FIELDS}, **(vision_config or {})},
        visual_abstractor_config={**abstractor, **(visual_abstractor_config or {})},
        text_config=text,
        **fields,
    )


def gated_width(width: int) -> int:
    """The release's width of the gated feed-forward layers: two thirds of four times 1024, in steps of 256."""
    return 256 * -(-(4 * width * 2 // 3) // 256)


def rename_vision(name: str, value: torch.Tensor) -> tuple[str, torch.Tensor]:
    """A weight of `CLIPVisionModel` as a weight of an Owl."""
    for theirs, ours in CLIP_NAMES:
        name = name.replace(theirs, ours)
    if name.endswith(("cls_token", "position_embedding")):
        value = value.reshape(1, -1, value.shape[-1])
    return f"model.vision_model.{name}", value


def rename_text(language_model: PreTrainedModel, owl: MplugOwlForConditionalGeneration) -> Rename:
    """How a weight of this causal language model becomes one of the Owl."""
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
