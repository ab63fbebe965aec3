"""A fresh Owl from a CLIP vision model and a language model: where stage 1 starts."""

from typing import Any

import torch
from transformers import CLIPVisionModel, PreTrainedModel

from ..mplug_owl.configuration_mplug_owl import MplugOwlConfig
from ..mplug_owl.modeling_mplug_owl import MplugOwlForConditionalGeneration


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


def build_owl(
    vision: CLIPVisionModel,
    language_model: PreTrainedModel,
    num_query_tokens: int = 64,
    num_abstractor_layers: int = 6,
    use_temporal: bool = False,
) -> MplugOwlForConditionalGeneration:
    """
    An Owl with the weights of both models and a new abstractor (paper, section 3.1), in the language model's type.

    Args:
        vision (`CLIPVisionModel`): Becomes the vision model, with its own epsilon of the layer norms.
        language_model (`PreTrainedModel`): A causal language model of the library.
        num_query_tokens (`int`, defaults to 64): Learned queries of the abstractor.
        num_abstractor_layers (`int`, defaults to 6): Layers of the abstractor.
        use_temporal (`bool`, defaults to `False`): Whether the Owl shall see videos; the new layers start at random.

    Raises:
        ValueError: for a language model whose logits are not `lm_head(last_hidden_state)`.
    """
    clip = vision.config
    config = MplugOwlConfig(
        vision_config={**{name: clip.to_dict()[name] for name in CLIP_FIELDS}, "use_temporal": use_temporal},
        visual_abstractor_config={
            "hidden_size": clip.hidden_size,
            "encoder_hidden_size": clip.hidden_size,
            "intermediate_size": gated_width(clip.hidden_size),
            "num_hidden_layers": num_abstractor_layers,
            "num_attention_heads": clip.num_attention_heads,
        },
        text_config=language_model.config,
        num_query_tokens=num_query_tokens,
    )
    model: Any = MplugOwlForConditionalGeneration(config)
    missing, unexpected = model.model.vision_model.load_state_dict(_clip_weights(vision), strict=False)
    assert all("temporal" in name for name in missing) and not unexpected, (missing, unexpected)
    text_weights = language_model.base_model.state_dict()
    if config.text_config.model_type == "bloom":
        norm = {name: text_weights.pop(f"word_embeddings_layernorm.{name}") for name in ("weight", "bias")}
        model.model.embedding_norm.load_state_dict(norm)
    model.model.language_model.load_state_dict(text_weights)
    model.lm_head.load_state_dict(language_model.get_output_embeddings().state_dict())
    return model.to(language_model.dtype)


def gated_width(width: int) -> int:
    """The release's width of the gated feed-forward layers: two thirds of four times 1024, in steps of 256."""
    return 256 * -(-(4 * width * 2 // 3) // 256)


def _clip_weights(vision: CLIPVisionModel) -> dict[str, torch.Tensor]:
    weights = {}
    for name, value in vision.state_dict().items():
        for theirs, ours in CLIP_NAMES:
            name = name.replace(theirs, ours)
        if name.endswith(("cls_token", "position_embedding")):
            value = value.reshape(1, -1, value.shape[-1])
        weights[name] = value
    return weights
