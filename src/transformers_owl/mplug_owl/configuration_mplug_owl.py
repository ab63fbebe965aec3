# SPDX-License-Identifier: Apache-2.0
"""Configuration of mPLUG-Owl: vision model, visual abstractor, and the composite with a causal language model."""

import copy
import difflib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.utils import logging


if TYPE_CHECKING:  # named here, it is copied wherever a part of this folder is saved
    from .licence_mplug_owl import LICENCE  # noqa: F401

VERSION = "0.1.0"  # of the package; what it saves carries it
MOST_CROPS = 100

logger = logging.get_logger(__name__)


@strict
class MplugOwlVisionConfig(PreTrainedConfig):
    r"""
    Configuration of the vision model f_V, a ViT. The defaults are those of every release (paper, section 4.1).

    Args:
        hidden_size (`int`, defaults to 1024): Width of the vision model.
        intermediate_size (`int`, defaults to 4096): Width of the feed-forward layers.
        num_hidden_layers (`int`, defaults to 24): Number of layers.
        num_attention_heads (`int`, defaults to 16): Attention heads per layer; must divide `hidden_size`.
        num_channels (`int`, defaults to 3): Colour channels.
        image_size (`int`, defaults to 224): Side of the square image, pixels.
        patch_size (`int`, defaults to 14): Side of a patch, pixels.
        hidden_act (`str`, defaults to `"quick_gelu"`): Activation of the feed-forward layers.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of the layer norms.
        attention_dropout (`float`, defaults to 0.0): Dropout of the attention weights in training.
        initializer_range (`float`, defaults to 0.02): Standard deviation of fresh weights.
        use_temporal (`bool`, defaults to `False`): Whether layers mix the frames of a video (video releases).
    """

    model_type = "mplug_owl_vision_model"
    base_config_key = "vision_config"
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.out_proj": "rowwise",
        "layers.*.mlp.fc1": "colwise",
        "layers.*.mlp.fc2": "rowwise",
    }
    base_model_fsdp_plan = {
        "embeddings": "free_full_weight",
        "layers.*": "free_full_weight",
        "post_layernorm": "keep_full_weight",
    }

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    use_temporal: bool = False


@strict
class MplugOwlVisualAbstractorConfig(PreTrainedConfig):
    r"""
    Configuration of the visual abstractor f_K: learned queries that summarise the patches (paper, section 3.1).

    Args:
        hidden_size (`int`, defaults to 1024): Width of the queries.
        intermediate_size (`int`, defaults to 2816): Width of the gated feed-forward layers.
        num_hidden_layers (`int`, defaults to 6): Number of layers.
        num_attention_heads (`int`, defaults to 16): Attention heads per layer; must divide `hidden_size`.
        encoder_hidden_size (`int`, defaults to 1024): Width of the vision model; if it is not `hidden_size`, a linear
            projection is added. In a [`MplugOwlConfig`] the vision configuration sets it.
        attention_probs_dropout_prob (`float`, defaults to 0.1): Dropout of the attention weights in training.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of the layer norm inside the feed-forward layers.
        initializer_range (`float`, defaults to 0.02): Standard deviation of fresh weights.
        num_query_tokens (`int`, defaults to 64): Number of queries. In a [`MplugOwlConfig`] its own field sets it.
        text_hidden_size (`int`, defaults to 4096): Width of the language model. In a [`MplugOwlConfig`] the text
            configuration sets it.
        use_temporal (`bool`, defaults to `False`): Whether there are further queries for videos. In a
            [`MplugOwlConfig`] a vision configuration of the releases' type sets it.
        max_crops (`int`, defaults to 1): Maximum number of cells that an image is also cut into (UReader, arXiv
            2310.05126), with embeddings of each cell's row and column; 1 takes whole images only.

    Raises:
        ValueError: for `max_crops` outside 1 to 100.
    """

    model_type = "mplug_owl_visual_abstract"
    base_config_key = "visual_abstractor_config"
    # The feed-forward layers stay whole: the norm inside them needs every column.
    base_model_tp_plan = {
        "layers.*.cross_attn.q_proj": "colwise",
        "layers.*.cross_attn.k_proj": "colwise",
        "layers.*.cross_attn.v_proj": "colwise",
        "layers.*.cross_attn.out_proj": "rowwise",
    }
    base_model_fsdp_plan = {"layers.*": "free_full_weight", "visual_fc": "keep_full_weight"}

    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    encoder_hidden_size: int = 1024
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    num_query_tokens: int = 64
    text_hidden_size: int = 4096
    use_temporal: bool = False
    max_crops: int = 1

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_max_crops(self.max_crops)


@strict
class MplugOwlConfig(PreTrainedConfig):
    r"""
    Configuration of mPLUG-Owl: a vision model, a visual abstractor and a causal language model (arXiv 2304.14178).

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*): The vision model: the releases' ViT
            ([`MplugOwlVisionConfig`]), or one of the library's that gives the patches of an image, such as those of
            CLIP, SigLIP and DINOv2, whose `dict` names the `model_type`.
        visual_abstractor_config (`MplugOwlVisualAbstractorConfig` or `dict`, *optional*): The visual abstractor.
        text_config (`PreTrainedConfig` or `dict`, *optional*): The language model, LLaMA-7B by default; a `dict`
            names its `model_type`.
        num_query_tokens (`int`, defaults to 64): Number of queries of the abstractor. An image takes one position more.
        image_token_id (`int`, *optional*): Token id at the positions of images. Defaults to the first id outside the
            language model's vocabulary.
        video_token_id (`int`, *optional*): Token id at the positions of videos. Defaults to `image_token_id` + 1.
        initializer_range (`float`, defaults to 0.02): Standard deviation of fresh weights.
        tie_word_embeddings (`bool`, *optional*): Ignored; always that of `text_config`.
        code_version (`str`, *optional*): Version of the code that wrote the configuration; logs a warning if this code
            has another one, and is replaced by this code's.

    Raises:
        ValueError: for a multimodal model as `text_config`, and for equal or negative token ids.
    """

    model_type = "mplug-owl"
    # What evaluation does not gather: not every batch has it.
    keys_to_ignore_at_inference = ["cache", "past_key_values", "image_outputs", "video_outputs"]
    sub_configs = {
        "vision_config": MplugOwlVisionConfig,
        "visual_abstractor_config": MplugOwlVisualAbstractorConfig,
        "text_config": AutoConfig,
    }
    base_model_fsdp_plan = {}  # the parts bring theirs

    vision_config: Any = None  # a configuration; a dictionary becomes one
    visual_abstractor_config: Any = None  # a configuration; a dictionary becomes one
    text_config: Any = None  # a configuration; a dictionary becomes one
    num_query_tokens: int = 64
    image_token_id: int | None = None
    video_token_id: int | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    code_version: str | None = None

    def __post_init__(self, **kwargs):
        for name, config_class in self.sub_configs.items():
            setattr(self, name, _part(config_class, getattr(self, name)))
        super().__post_init__(**kwargs)
        if self.code_version not in (None, VERSION):
            logger.warning_once(
                f"This checkpoint was written by transformers_owl {self.code_version}, but this is {VERSION}. If "
                "something fails, load the repository's own code with trust_remote_code=True, without importing the "
                "package."
            )
        self.code_version = VERSION
        vision, abstractor, text = self.vision_config, self.visual_abstractor_config, self.text_config
        parts = [name for name, kind in text.sub_configs.items() if kind is AutoConfig or kind.model_type]
        if parts:
            raise ValueError(
                f"`{text.model_type}` cannot be the language model: it has several models ({', '.join(parts)}). Pass "
                "the configuration of its language model."
            )
        abstractor.encoder_hidden_size = vision.hidden_size
        abstractor.num_query_tokens = self.num_query_tokens
        abstractor.text_hidden_size = text.hidden_size
        if vision.model_type == MplugOwlVisionConfig.model_type:
            abstractor.use_temporal = vision.use_temporal
        self.tie_word_embeddings = getattr(text, "tie_word_embeddings", False)
        # As padding id, EOS would get no gradient in its embedding, so that full fine-tuning could not learn to stop.
        ends, padding = (getattr(text, name, None) for name in ("eos_token_id", "pad_token_id"))
        if padding is not None and padding in (ends if isinstance(ends, list) else [ends]):
            text.pad_token_id = None
        if self.image_token_id is None:
            self.image_token_id = text.vocab_size
        if self.video_token_id is None:
            self.video_token_id = self.image_token_id + 1
        if self.image_token_id == self.video_token_id or min(self.image_token_id, self.video_token_id) < 0:
            raise ValueError(
                f"image_token_id is {self.image_token_id} and video_token_id {self.video_token_id}, but they must be "
                "different and not negative: pass `processor.image_token_id` and `processor.video_token_id`."
            )

    @property
    def sees_videos(self) -> bool:
        return self.visual_abstractor_config.use_temporal

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in the library; of an original release only the fields that describe the model are read."""
        if "image_token_id" not in config_dict:
            config_dict = _read_original_config(config_dict)
        return super().from_dict(config_dict, **kwargs)


class MplugOwlUnderscoreConfig(MplugOwlConfig):
    """Reads configurations whose model type is spelled `mplug_owl`; gives a [`MplugOwlConfig`]."""

    model_type = "mplug_owl"

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        return MplugOwlConfig.from_dict(config_dict, **kwargs)


def _read_original_config(config_dict: dict) -> dict:
    """The fields that describe the model in a configuration of the original release, which holds many others."""
    names = ("num_query_tokens", "initializer_range", "architectures", "torch_dtype", "name_or_path")
    config = {name: config_dict[name] for name in names if name in config_dict}
    text_config = config_dict.get("text_config") or {}
    sections: dict[str, type[PreTrainedConfig]] = {
        "vision_config": MplugOwlVisionConfig,
        "visual_abstractor_config": MplugOwlVisualAbstractorConfig,
        "text_config": CONFIG_MAPPING[text_config.get("model_type", "llama")],
    }
    for section, config_class in sections.items():
        fields = {
            *config_class.__annotations__,
            *config_class.attribute_map,
            "model_type",
            "rope_theta",
            "rope_scaling",
        }
        given = config_dict.get(section) or {}
        config[section] = {field: value for field, value in given.items() if field in fields}
    # Programs such as TRL read here which Auto class a model of no class of the library's has.
    config["auto_map"] = {"AutoModelForImageTextToText": "modeling_mplug_owl.MplugOwlForConditionalGeneration"}
    return config


def check_max_crops(max_crops: int) -> None:
    fits = isinstance(max_crops, int) and 1 <= max_crops <= MOST_CROPS
    expect(fits, "max_crops", max_crops, f"from 1 (whole images only) to {MOST_CROPS}")


def expect(fits: Any, name: str, given: Any, expected: str) -> None:
    """Raises a ValueError that says what was given and what is allowed, unless it `fits`."""
    if not fits:
        raise ValueError(f"{name} is {given!r:.80}, but must be {expected}.")


def check_names(given: Iterable[str], known: Collection[str], what: str) -> None:
    """Raises a ValueError for an unknown name, with the nearest known one, and all of them if they are few."""
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            choice = f" Choose one of {', '.join(known)}." if len(known) <= 20 else ""
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"Unknown {what}: {name!r:.80}.{hint}{choice}")


def _part(config_class: Any, given: PreTrainedConfig | dict | None) -> PreTrainedConfig:
    """The configuration of a part; the caller's object is not modified."""
    if isinstance(given, PreTrainedConfig):
        return copy.deepcopy(given)
    fields = dict(given or {})
    if config_class is AutoConfig:
        config_class = CONFIG_MAPPING[fields.get("model_type", "llama")]
    elif fields.get("model_type", config_class.model_type) != config_class.model_type:
        config_class = CONFIG_MAPPING[fields["model_type"]]
    return config_class(**fields)


MplugOwlConfig.register_for_auto_class()

__all__ = ["MplugOwlConfig", "MplugOwlVisionConfig", "MplugOwlVisualAbstractorConfig"]
