# SPDX-License-Identifier: Apache-2.0
"""mPLUG-Owl (arXiv 2304.14178): a vision model, a visual abstractor and a causal language model.

Shapes: N images (with crops: views of images) or videos, T frames, P tokens of a frame (class token and patches),
D width of vision model and abstractor, Q queries, B rows of a batch, L positions of a row, H width of the language
model, V its vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.models.auto.modeling_auto import AutoModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging

from .configuration_mplug_owl import MplugOwlConfig, MplugOwlVisionConfig, MplugOwlVisualAbstractorConfig, expect
from .crops_mplug_owl import MplugOwlCropEmbedding, check_crops
from .generation_mplug_owl import MplugOwlGeneration, default_generation_config
from .language_mplug_owl import CausalHead
from .library_mplug_owl import (
    ALL_ATTENTION_FUNCTIONS,
    CACHE_NAMES,
    GradientCheckpointingLayer,
    can_return_tuple,
    capture_outputs,
    init,
    merge_with_config_defaults,
    torch_compilable_check,
)
from .loading_mplug_owl import CompleteWeights, FromOriginal
from .vision_mplug_owl import flat_frames, is_releases_type, leave_out_pooling, see
from .weights_mplug_owl import NEGATIVE_IDS, refuse_original_arguments, refuse_original_weights


if TYPE_CHECKING:  # named here, the file is copied beside saved weights
    from .pipeline_mplug_owl import MplugOwlImageToTextPipeline  # noqa: F401


logger = logging.get_logger(__name__)
# Of a language model, whatever this version calls the cache.
LANGUAGE_MODEL_OUTPUTS = frozenset(field.name for field in fields(BaseModelOutputWithPast))


@dataclass
class MplugOwlVisualFeatures(BaseModelOutputWithPooling):
    """
    Output of `get_image_features` and `get_video_features`.

    Args:
        last_hidden_state (`torch.Tensor` (N, P, D), videos (N, T, P, D)): Output of the vision model.
        pooler_output (`torch.Tensor` (N, Q + 1, H)): The embeddings of each image or video for the language model.
        hidden_states, attentions (*optional*): Outputs of the vision model's layers.
        abstractor_hidden_states (*optional*): Input and output of the abstractor's layers, each (N, Q, D).
        abstractor_attentions (*optional*): A tensor (N, heads, Q, Q + T * P) per layer. The first Q keys are the
            queries themselves, then come the class token and the patches of each frame.
    """

    abstractor_hidden_states: tuple[torch.Tensor, ...] | None = None
    abstractor_attentions: tuple[torch.Tensor, ...] | None = None


class VisualOutputs:
    """Embeddings of images and videos, by the names that outputs had before transformers 5.24."""

    image_outputs: MplugOwlVisualFeatures | None
    video_outputs: MplugOwlVisualFeatures | None

    @property
    def image_hidden_states(self) -> torch.Tensor | None:
        """(N, Q + 1, H)"""
        return None if self.image_outputs is None else self.image_outputs.pooler_output

    @property
    def video_hidden_states(self) -> torch.Tensor | None:
        """(N, Q + 1, H)"""
        return None if self.video_outputs is None else self.video_outputs.pooler_output


@dataclass
class MplugOwlModelOutputWithPast(VisualOutputs, BaseModelOutputWithPast):
    """
    Output of [`MplugOwlModel`]: that of the language model, and the visual features.

    Args:
        image_outputs, video_outputs ([`MplugOwlVisualFeatures`], *optional*): Features of the images and videos;
            `image_hidden_states` and `video_hidden_states` are their `pooler_output`.
    """

    image_outputs: MplugOwlVisualFeatures | None = None
    video_outputs: MplugOwlVisualFeatures | None = None


@dataclass
class MplugOwlCausalLMOutputWithPast(VisualOutputs, CausalLMOutputWithPast):
    """
    Output of [`MplugOwlForConditionalGeneration`]: that of a causal language model, and the visual features.

    Args:
        loss (`torch.Tensor` (), *optional*): Mean next-token cross-entropy where `labels` are not -100.
        logits (`torch.Tensor` (B, L, V)): Scores of the next token; `logits_to_keep` shortens L.
        image_outputs, video_outputs ([`MplugOwlVisualFeatures`], *optional*): As in [`MplugOwlModelOutputWithPast`].
    """

    image_outputs: MplugOwlVisualFeatures | None = None
    video_outputs: MplugOwlVisualFeatures | None = None


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
):
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class MplugOwlAttention(nn.Module):
    """Multi-head attention of one sequence (N, queries, D) to another (N, keys, D)."""

    is_causal = False

    def __init__(self, config, dropout: float):
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} of {config.model_type} must be a multiple of its "
                f"num_attention_heads {config.num_attention_heads}."
            )
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = nn.Dropout(dropout)  # a module, for what turns dropout off by its class
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        q, k, v = (
            projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projected in (self.q_proj(queries), self.k_proj(keys), self.v_proj(keys))
        )
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self, q, k, v, None, scaling=self.scaling, dropout=self.dropout.p if self.training else 0.0, **kwargs
        )
        return self.out_proj(output.flatten(2)), weights


class MplugOwlVisionEmbeddings(nn.Module):
    """Patches, a class token in front, and positions: (N, 3, height, width) to (N, P, D)."""

    def __init__(self, config: MplugOwlVisionConfig):
        super().__init__()
        num_patches = (config.image_size // config.patch_size) ** 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embedding = nn.Parameter(torch.empty(1, num_patches + 1, config.hidden_size))
        self.patch_embed = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed(pixel_values.to(self.patch_embed.weight.dtype)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.pre_layernorm(tokens + self.position_embedding)


class MplugOwlVisionMLP(nn.Module):
    def __init__(self, config: MplugOwlVisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class MplugOwlConvOverTime(nn.Conv1d):
    """A depthwise convolution over the frames of (N, T, P, D) that needs no copy with the frames last."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        channels_first, weight, padding = frames.permute(0, 3, 1, 2), self.weight[..., None], (*self.padding, 0)
        over_time = nn.functional.conv2d(channels_first, weight, self.bias, padding=padding, groups=self.groups)
        return over_time.permute(0, 2, 3, 1)


class MplugOwlVisionTemporal(nn.Module):
    """Mixes each patch with itself in the frames before and after, in half the width (video releases only)."""

    def __init__(self, config: MplugOwlVisionConfig):
        super().__init__()
        width = config.hidden_size // 2
        self.ln = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.down_proj = nn.Linear(config.hidden_size, width)
        self.conv = MplugOwlConvOverTime(width, width, kernel_size=3, padding=1, groups=width)
        self.activation = ACT2FN["quick_gelu"]
        self.up_proj = nn.Linear(width, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """(N * T, P, D) to the same shape. The class token comes back as it is: the layer's sum doubles it."""
        frames = self.down_proj(self.ln(hidden_states[:, 1:])).unflatten(0, (-1, num_frames))
        mixed = self.up_proj(self.activation(self.conv(frames).flatten(0, 1)))
        return torch.cat([hidden_states[:, :1], mixed], dim=1)


class MplugOwlVisionLayer(GradientCheckpointingLayer):
    def __init__(self, config: MplugOwlVisionConfig):
        super().__init__()
        if config.use_temporal:
            self.temporal = MplugOwlVisionTemporal(config)
        self.use_temporal = config.use_temporal
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = MplugOwlAttention(config, config.attention_dropout)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MplugOwlVisionMLP(config)

    def forward(self, hidden_states: torch.Tensor, num_frames: int = 1, **kwargs) -> torch.Tensor:
        if self.use_temporal and num_frames > 1:
            hidden_states = hidden_states + self.temporal(hidden_states, num_frames)
        normed = self.input_layernorm(hidden_states)
        hidden_states = hidden_states + self.self_attn(normed, normed, **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class MplugOwlAbstractorMLP(nn.Module):
    """Gated feed-forward layer with a norm inside."""

    def __init__(self, config: MplugOwlVisualAbstractorConfig):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN["silu"]
        self.ffn_ln = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.w2(self.ffn_ln(self.activation(self.w1(hidden_states)) * self.w3(hidden_states)))


class MplugOwlAbstractorLayer(GradientCheckpointingLayer):
    """The queries attend to themselves and the patches. The residual adds the *normed* queries, as in the release."""

    def __init__(self, config: MplugOwlVisualAbstractorConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.normk = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.cross_attn = MplugOwlAttention(config, config.attention_probs_dropout_prob)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.mlp = MplugOwlAbstractorMLP(config)

    def forward(self, queries: torch.Tensor, patches: torch.Tensor, **kwargs) -> torch.Tensor:
        queries = self.norm1(queries)
        keys = torch.cat([queries, self.normk(patches)], dim=1)
        queries = queries + self.cross_attn(queries, keys, **kwargs)[0]
        return queries + self.mlp(self.norm2(queries))


class MplugOwlPreTrainedModel(CompleteWeights):
    config: MplugOwlConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MplugOwlVisionEmbeddings", "MplugOwlVisionLayer", "MplugOwlVisualAbstractorModel"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, MplugOwlVisionEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
            init.trunc_normal_(module.position_embedding, std=std)
        elif isinstance(module, MplugOwlCropEmbedding):
            init.zeros_(module.weight)  # what was trained without crops sees as before
        elif isinstance(module, MplugOwlVisualAbstractorModel):
            # The release started from zeros, where only dropout tells the queries apart.
            init.trunc_normal_(module.query_tokens, std=std)
            init.trunc_normal_(module.vit_eos, std=std)
            if module.config.use_temporal:
                init.trunc_normal_(module.temporal_query_tokens, std=std)

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """As in the library, but under this model's own weight names, which `load_state_dict` takes too."""
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)


class MplugOwlVisionModel(MplugOwlPreTrainedModel):
    """The vision model f_V: a ViT over images, or over all frames of videos at once (paper, section 3.1)."""

    config: MplugOwlVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    _can_record_outputs = {"hidden_states": MplugOwlVisionLayer, "attentions": MplugOwlAttention}

    def __init__(self, config: MplugOwlVisionConfig):
        super().__init__(config)
        self.embeddings = MplugOwlVisionEmbeddings(config)
        self.layers = nn.ModuleList([MplugOwlVisionLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embed

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` (N, 3, S, S), or (N, T, 3, S, S) for videos): Normalised pixels; S is
                `config.image_size`.

        Returns:
            `BaseModelOutput`: `last_hidden_state` (N, P, D) or (N, T, P, D), after `post_layernorm`.

        Raises:
            ValueError: for another shape or an integer dtype.
        """
        frames = flat_frames(pixel_values, self.config, self.config.use_temporal)
        num_frames = pixel_values.shape[1] if pixel_values.ndim == 5 else 1
        hidden_states = self.embeddings(frames)
        for layer in self.layers:
            hidden_states = layer(hidden_states, num_frames, **kwargs)
        hidden_states = self.post_layernorm(hidden_states)
        return BaseModelOutput(last_hidden_state=hidden_states.view(*pixel_values.shape[:-3], *hidden_states.shape[1:]))


class MplugOwlVisualAbstractorModel(MplugOwlPreTrainedModel):
    """The visual abstractor f_K: Q learned queries summarise the patches of an image or video (paper, section 3.1)."""

    config: MplugOwlVisualAbstractorConfig
    base_model_prefix = "abstractor"
    main_input_name = "patches"
    input_modalities = ("image", "video")
    _can_record_outputs = {"hidden_states": MplugOwlAbstractorLayer, "attentions": MplugOwlAttention}

    def __init__(self, config: MplugOwlVisualAbstractorConfig):
        super().__init__(config)
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, config.hidden_size))
        self.vision_proj = nn.Identity()
        if config.encoder_hidden_size != config.hidden_size:
            self.vision_proj = nn.Linear(config.encoder_hidden_size, config.hidden_size)
        self.layers = nn.ModuleList([MplugOwlAbstractorLayer(config) for _ in range(config.num_hidden_layers)])
        self.visual_fc = nn.Linear(config.hidden_size, config.text_hidden_size)
        self.vit_eos = nn.Parameter(torch.empty(1, 1, config.text_hidden_size))
        if config.max_crops > 1:
            self.crop_rows = MplugOwlCropEmbedding(config.max_crops + 1, config.hidden_size)
            self.crop_columns = MplugOwlCropEmbedding(config.max_crops + 1, config.hidden_size)
        if config.use_temporal:
            self.temporal_query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, config.hidden_size))
            self.temporal_visual_fc = nn.Linear(config.hidden_size, config.text_hidden_size)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, patches: torch.Tensor, crop_positions: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutput:
        """
        Args:
            patches (`torch.Tensor` (N, P, D), or (N, T, P, D) for videos): Output of the vision model, D its width.
            crop_positions (`torch.Tensor` (N, 2), *optional*): Where `config.max_crops` is above 1, row and column of
                each cell from 1, or 0, 0 for a whole image or video, which is the default.

        Returns:
            `BaseModelOutput`: `last_hidden_state` (N, Q + 1, H): the queries, and `vit_eos` at the end.
        """
        num_frames = patches.shape[1] if patches.ndim == 4 else 1
        queries = self.query_tokens
        if num_frames > 1:
            queries = torch.cat([queries, self.temporal_query_tokens], dim=1)
        hidden_states = queries.expand(len(patches), -1, -1)
        if self.config.max_crops > 1:
            if crop_positions is None:
                crop_positions = torch.zeros(len(patches), 2, dtype=torch.long, device=patches.device)
            rows, columns = crop_positions.to(patches.device).unbind(1)
            hidden_states = hidden_states + (self.crop_rows(rows) + self.crop_columns(columns))[:, None]
        patches = self.vision_proj(patches.flatten(1, -2))
        for layer in self.layers:
            hidden_states = layer(hidden_states, patches, **kwargs)
        visual = self.visual_fc(hidden_states[:, : self.config.num_query_tokens])
        if num_frames > 1:
            visual = visual + self.temporal_visual_fc(hidden_states[:, self.config.num_query_tokens :])
        return BaseModelOutput(last_hidden_state=torch.cat([visual, self.vit_eos.expand(len(visual), -1, -1)], dim=1))


def keep_positions(hidden_states: torch.Tensor, kept: int | torch.Tensor) -> torch.Tensor:
    """The last `kept` positions of (B, L, H), or those of a tensor: the same in all rows, per row, or a mask (B, L)."""
    if isinstance(kept, int):
        expect(kept >= 0, "logits_to_keep", kept, "0 for all positions, or the number of last positions to keep")
        return hidden_states[:, -kept:] if kept else hidden_states
    if kept.dtype == torch.bool:
        return hidden_states[kept]
    return hidden_states[:, kept] if kept.ndim == 1 else torch.take_along_dim(hidden_states, kept[..., None], dim=1)


def share_of_words(words: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The share of the labels (B, L) that count in the loss and are left in `words`."""
    counted, left = ((each[..., 1:] != -100).sum() for each in (labels, words))
    return left.clamp(min=1) / counted.clamp(min=1)


class MplugOwlModel(FromOriginal, MplugOwlPreTrainedModel):
    """Vision model, visual abstractor and language model without a head."""

    _keys_to_ignore_on_load_unexpected = [r"^(language_model\.)?lm_head\."]

    def __init__(self, config: MplugOwlConfig):
        super().__init__(config)
        vision = config.vision_config
        is_ours = is_releases_type(vision)
        self.vision_model = MplugOwlVisionModel._from_config(vision) if is_ours else AutoModel.from_config(vision)
        leave_out_pooling(self.vision_model)
        self.abstractor = MplugOwlVisualAbstractorModel._from_config(config.visual_abstractor_config)
        self.language_model = AutoModel.from_config(config.text_config)
        text = config.text_config.to_dict()
        # ALiBi has no limit, and scaled rotary positions reach beyond the one that the configuration names.
        is_scaled = (text.get("rope_parameters") or {}).get("rope_type", "default") != "default"
        field = config.text_config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
        self.context_length = math.inf if is_scaled else text.get(field, math.inf)
        self.embedding_norm = nn.Identity()
        if config.text_config.model_type == "bloom":
            # Bloom's norm is for the embeddings of text alone: visual features join after it.
            self.embedding_norm = self.language_model.word_embeddings_layernorm
            self.language_model.word_embeddings_layernorm = nn.Identity()
        self.post_init()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Writes a folder that `AutoModel` loads with or without this package."""
        self.config.auto_map = {"AutoModel": "modeling_mplug_owl.MplugOwlModel"}
        super().save_pretrained(save_directory, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        crop_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MplugOwlVisualFeatures:
        """
        Features of images as the language model takes them.

        Args:
            pixel_values (`torch.Tensor` (N, 3, S, S)): Normalised pixels, S is `vision_config.image_size`.
            crop_positions (`torch.Tensor` (N, 2), *optional*): Only for a model with crops: row and column of each
                cell, (0, 0) for a whole image.
            output_attentions, output_hidden_states (`bool`, *optional*): Whether to return those of all layers.

        Returns:
            [`MplugOwlVisualFeatures`]: `pooler_output` (N, Q + 1, H).
        """
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}, but must be (images, channels, height, width). "
                "Pass videos as pixel_values_videos."
            )
        check_crops(len(pixel_values), crop_positions, self.config.visual_abstractor_config.max_crops)
        return self._get_visual_features(pixel_values, crop_positions, **kwargs)

    @can_return_tuple
    def get_video_features(
        self, pixel_values_videos: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> MplugOwlVisualFeatures:
        """
        Features of videos as the language model takes them.

        Args:
            pixel_values_videos (`torch.Tensor` (N, T, 3, S, S)): Normalised pixels, S is `vision_config.image_size`;
                without T, videos of one frame.
            output_attentions, output_hidden_states (`bool`, *optional*): Whether to return those of all layers.

        Returns:
            [`MplugOwlVisualFeatures`]: `pooler_output` (N, Q + 1, H).
        """
        return self._get_visual_features(pixel_values_videos, **kwargs)

    def _get_visual_features(self, pixel_values, crop_positions=None, **kwargs) -> MplugOwlVisualFeatures:
        vision = see(self.vision_model, pixel_values, self.config.sees_videos, **kwargs)
        abstractor = self.abstractor(vision.last_hidden_state, crop_positions, **kwargs)
        return MplugOwlVisualFeatures(
            last_hidden_state=vision.last_hidden_state,
            pooler_output=abstractor.last_hidden_state,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            abstractor_hidden_states=abstractor.hidden_states,
            abstractor_attentions=abstractor.attentions,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, MplugOwlVisualFeatures] | None = None,
        crop_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MplugOwlModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` (B, L)): Token ids. `config.image_token_id` stands at the Q + 1 positions of
                each image, `config.video_token_id` at those of each video.
            pixel_values (`torch.Tensor` (N, 3, S, S), *optional*): The images of all rows, in their order.
            pixel_values_videos (`torch.Tensor` (N, T, 3, S, S), *optional*): The videos of all rows, in their order.
            attention_mask (`torch.Tensor` (B, L), *optional*): 0 at padding.
            position_ids, inputs_embeds: As for the language model; so is its cache, under the library's name.
            mm_encoder_outputs (`dict`, *optional*): Features under "image" and "video" instead of pixels.
            crop_positions (`torch.Tensor` (N, 2), *optional*): As in `get_image_features`, beside `pixel_values`.

        Raises:
            ValueError: if the numbers of placeholders and images differ, and for wrong shapes.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        refuse_original_arguments(kwargs)
        images = {"pixel_values": pixel_values, "crop_positions": crop_positions}
        features = self._encode(images, {"pixel_values_videos": pixel_values_videos}, mm_encoder_outputs or {})
        caches = {name: kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None}
        inputs_embeds = self._embed(input_ids, inputs_embeds, features, caches)
        self._check_layout(inputs_embeds, attention_mask, position_ids, bool(caches))
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return MplugOwlModelOutputWithPast(
            **{name: value for name, value in outputs.items() if name in LANGUAGE_MODEL_OUTPUTS},
            image_outputs=features.get("image"),
            video_outputs=features.get("video"),
        )

    def _check_layout(self, inputs_embeds, attention_mask, position_ids, has_cache: bool) -> None:
        """Refuses shapes that the language model would silently broadcast or cut."""
        rows, length = inputs_embeds.shape[:2]
        if length > self.context_length:
            logger.warning_once(
                f"The input has {length} positions, but the language model's context length is {self.context_length}: "
                "its answers may be noise. Shorten the text, or pass fewer images."
            )
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            masked = attention_mask.shape[1]
            if len(attention_mask) != rows or masked < length or (masked > length and not has_cache):
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, but must have shape {(rows, length)}, or "
                    "be longer with a cache."
                )
        if position_ids is not None and position_ids.shape[-1] != length:
            raise ValueError(
                f"position_ids have shape {tuple(position_ids.shape)}, but must have {length} positions per row."
            )

    def _encode(self, images, videos, mm_encoder_outputs) -> dict[str, MplugOwlVisualFeatures]:
        """Features of the given images and videos, under "image" and "video"."""
        features = dict(mm_encoder_outputs)
        encoders = (("image", images, self.get_image_features), ("video", videos, self.get_video_features))
        for kind, inputs, encode in encoders:
            pixels = next(iter(inputs.values()))
            if pixels is not None and kind in features:
                raise ValueError(f"Both pixels and mm_encoder_outputs were given for {kind}: pass only one of them.")
            if pixels is not None:
                features[kind] = encode(**inputs, return_dict=True)
        return features

    def _embed(self, input_ids, inputs_embeds, features, caches) -> torch.Tensor:
        """Embeddings (B, L, H) with the features at their placeholders."""
        token_ids = {"image": self.config.image_token_id, "video": self.config.video_token_id}
        if input_ids is not None:
            if features and not torch.compiler.is_compiling() and (input_ids < 0).any():
                raise ValueError(NEGATIVE_IDS)
            masks = {kind: input_ids == token_id for kind, token_id in token_ids.items()}
            text_ids = input_ids
            for kind, mask in masks.items():
                if kind in features:
                    # The id may lie outside the vocabulary: any row of the embedding does, since it is replaced below.
                    text_ids = text_ids.masked_fill(mask, 0)
                elif input_ids.shape[1] > 1 and not self.training:
                    self._note_missing(kind, token_ids[kind], mask)
            inputs_embeds = self.get_input_embeddings()(text_ids)
        else:
            masks = {kind: self._find_embedded(token_ids[kind], inputs_embeds) for kind in features}
        inputs_embeds = self.embedding_norm(inputs_embeds)
        for kind, output in features.items():
            mask, visual = masks[kind], output.pooler_output
            self._check_count(kind, mask, visual, caches)
            visual = visual.to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.masked_scatter(mask.unsqueeze(-1).to(visual.device), visual)
        return inputs_embeds

    def _note_missing(self, kind: str, token_id: Any, mask: torch.Tensor) -> None:
        """Placeholders without their images or videos: text if their id is in the vocabulary, else an error."""
        message = f"The text has positions of {kind}s, but no {kind} was given"
        if token_id >= self.config.text_config.vocab_size:
            advice = "prepare both with MplugOwlProcessor, and pass everything that it returns"
            torch_compilable_check(~mask.any(), f"{message}: {advice}.")
        elif not torch.compiler.is_compiling() and mask.any():
            logger.warning_once(f"{message}: they are read as text.")

    def _check_count(self, kind: str, mask: torch.Tensor, visual: torch.Tensor, caches: dict[str, Any]) -> None:
        positions = visual.shape[0] * visual.shape[1]
        torch_compilable_check(mask.sum() == positions, lambda: self._say_counts(kind, mask, visual, caches))

    def _say_counts(self, kind: str, mask: torch.Tensor, visual: torch.Tensor, caches: dict[str, Any]) -> str:
        each = visual.shape[1]
        advice = "prepare both with MplugOwlProcessor"
        for name, cache in caches.items():
            if (read := int(cache.get_seq_length())) > 0:
                advice = (
                    f"`{name}` already holds {read} positions, so leave out the pixels of the {kind}s in these, and "
                    f"pass only those of new {kind}s"
                )
        return (
            f"The text has {int(mask.sum())} {kind} positions, but the {len(visual)} given {kind}s need "
            f"{each * len(visual)} ({each} each): {advice}."
        )

    def _find_embedded(self, token_id, inputs_embeds) -> torch.Tensor:
        """Mask (B, L) of the positions that hold the embedding of a placeholder's id."""
        vocab_size = self.config.text_config.vocab_size
        if token_id >= vocab_size:
            raise ValueError(
                f"inputs_embeds alone do not show where images and videos belong: their id {token_id} is outside the "
                f"language model's vocabulary of {vocab_size} and has no embedding. Pass input_ids, or set "
                "image_token_id and video_token_id inside the vocabulary."
            )
        placeholder = self.get_input_embeddings()(torch.tensor(token_id, device=inputs_embeds.device))
        return (inputs_embeds == placeholder).all(-1)


# The library asks for GenerationMixin among the bases themselves.
class MplugOwlForConditionalGeneration(FromOriginal, MplugOwlGeneration, MplugOwlPreTrainedModel, GenerationMixin):
    """
    mPLUG-Owl with its language modelling head: answers about images and videos.

    Example:

    ```python
    model = MplugOwlForConditionalGeneration.from_pretrained(folder)
    processor = MplugOwlProcessor.from_pretrained(folder)
    content = [{"type": "image", "path": "owl.png"}, {"type": "text", "text": "What is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )
    answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    print(processor.decode(answer, skip_special_tokens=True))
    ```
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: MplugOwlConfig):
        super().__init__(config)
        self.model = MplugOwlModel(config)
        language_model = self.model.language_model
        text = config.text_config
        self.causal_head = CausalHead(text, language_model)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=self.causal_head.has_bias)
        embeddings = language_model.get_input_embeddings()
        name = next(name for name, module in language_model.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{name}.weight"}
        self.generation_config = default_generation_config(config)
        self.register_load_state_dict_pre_hook(refuse_original_weights)
        self.post_init()
        if config.tie_word_embeddings and f"model.language_model.{name}" not in self._tp_plan:
            self._tp_plan.pop("lm_head")  # whole, as the embeddings that it is

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Writes a folder that every Auto class and `pipeline` load with or without this package."""
        auto_classes = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
        self.config.auto_map = dict.fromkeys(auto_classes, "modeling_mplug_owl.MplugOwlForConditionalGeneration")
        self.config.custom_pipelines = {
            "image-to-text": {
                "impl": "pipeline_mplug_owl.MplugOwlImageToTextPipeline",
                "pt": ["AutoModelForImageTextToText"],
                "type": "multimodal",
            }
        }
        super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def context_length(self) -> float:
        """Maximum number of positions of the language model; infinite if it has no limit."""
        return self.model.context_length

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(
        self, pixel_values: torch.Tensor, crop_positions: torch.Tensor | None = None, **kwargs
    ) -> MplugOwlVisualFeatures:
        return self.model.get_image_features(pixel_values, crop_positions, **kwargs)

    def get_video_features(self, pixel_values_videos: torch.Tensor, **kwargs) -> MplugOwlVisualFeatures:
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, MplugOwlVisualFeatures] | None = None,
        crop_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MplugOwlCausalLMOutputWithPast:
        """
        Arguments and errors of [`MplugOwlModel`], and:

        Args:
            labels (`torch.LongTensor` (B, L), *optional*): The ids to predict, -100 where there is no loss. Positions
                of images and videos never count; a `num_items_in_batch` that counted them is reduced by their share of
                these labels, which is exact if a step is one batch.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): Number of last positions to compute; 0 is all.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            crop_positions=crop_positions,
            **kwargs,
        )
        logits = self.causal_head(self.lm_head(keep_positions(outputs.last_hidden_state, logits_to_keep)))
        loss = None
        if labels is not None:
            wanted = tuple(logits.shape[:-1])
            expect(labels.shape == wanted, "The shape of labels", tuple(labels.shape), f"{wanted}, that of the logits")
            visual_ids = torch.tensor([self.config.image_token_id, self.config.video_token_id], device=labels.device)
            words = labels.masked_fill(torch.isin(labels, visual_ids), -100)
            if kwargs.get("num_items_in_batch") is not None:
                kwargs["num_items_in_batch"] = kwargs["num_items_in_batch"] * share_of_words(words, labels)
            loss = self.loss_function(
                logits=logits, labels=words, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return MplugOwlCausalLMOutputWithPast(loss=loss, logits=logits, **rest)


MplugOwlModel.register_for_auto_class("AutoModel")
MplugOwlForConditionalGeneration.register_for_auto_class("AutoModel")

__all__ = [
    "MplugOwlForConditionalGeneration",
    "MplugOwlModel",
    "MplugOwlPreTrainedModel",
    "MplugOwlVisionModel",
    "MplugOwlVisualAbstractorModel",
]
