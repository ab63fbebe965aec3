# SPDX-License-Identifier: Apache-2.0
"""What this folder needs of the library beyond its documented names: one entry a line, each with what it is for.

An entry that a release of transformers moves or changes is mended here and nowhere else. The versions between which
this was tried are `OLDEST` and `NEWEST`.
"""

import functools
import importlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version


OLDEST, NEWEST = "5.16.1", "5.24"  # of transformers, as tried
INSTALLED = version("transformers")
RANGE = f'"transformers>={OLDEST},<={NEWEST}.99"'

if Version(INSTALLED) < Version(OLDEST):
    raise ImportError(
        f"mPLUG-Owl needs transformers {OLDEST} or newer, but {INSTALLED} is installed: run `pip install {RANGE}`."
    )
if Version(INSTALLED).release[:2] > Version(NEWEST).release:
    warnings.warn(
        f"mPLUG-Owl is tested with transformers {OLDEST} to {NEWEST}, but {INSTALLED} is installed. If something "
        f"fails, run `pip install {RANGE}`.",
        stacklevel=2,
    )

# ruff: noqa: E402
import torch
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.generation import (
    GenerationMixin,
    LogitsProcessorList,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from transformers.image_processing_backends import PilBackend
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.peft import maybe_load_adapters
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, load_state_dict
from transformers.models.auto.tokenization_auto import get_tokenizer_config, tokenizer_class_from_name
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import find_adapter_config_file, torch_compilable_check
from transformers.utils.chat_template_utils import render_jinja_template
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.hub import cached_file, get_checkpoint_shard_files
from transformers.utils.output_capturing import capture_outputs


try:
    from transformers.video_processing_utils import VideoProcessorMixin
except ImportError:  # before 5.19, one class did this and computed by torchvision, which ours never asks it to
    from transformers.video_processing_utils import BaseVideoProcessor as VideoProcessorMixin

# Under which names a forward pass and its output may carry the cache: the first since 5.24, the second before.
CACHE_NAMES = ("cache", "past_key_values")
# The name that this version wants.
CACHE_NAME = next(name for name in CACHE_NAMES if name in BaseModelOutputWithPast.__dataclass_fields__)
# Arguments of `from_pretrained` that say where a file comes from.
HUB_NAMES = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
MOST_ITEMS = 8  # of a model for each byte of its files: those of 2 bits have four


@contextmanager
def undivided() -> Iterator[None]:
    """Within it modules keep whole weights, which DeepSpeed's ZeRO-3 would partition at construction."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    zero = importlib.import_module("deepspeed.runtime.zero.partition_parameters")  # an import statement makes it needed
    zero.shutdown_init_context()
    try:
        yield
    finally:
        zero.restore_init_context()


class OpenVocabulary(LogitsProcessorList):
    """Logits processors that index by the ids of a prompt, with placeholders outside the vocabulary."""

    def __init__(self, processors: LogitsProcessorList, visual_ids: tuple[int, int]):
        super().__init__(processors)
        self.visual_ids = visual_ids

    def __call__(self, input_ids, scores, **kwargs):
        guided = [each for each in self if isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor)]
        others = LogitsProcessorList(each for each in self if each not in guided)
        scores = LogitsProcessorList(guided)(input_ids, scores, **kwargs)  # it adds logits of the model's own columns
        vocab_size = scores.shape[-1]
        missing = max(self.visual_ids) + 1 - vocab_size
        if missing > 0:
            scores = torch.nn.functional.pad(scores, (0, missing), value=-float("inf"))
        scores = others(input_ids, scores, **kwargs)
        scores[:, list(self.visual_ids)] = -float("inf")
        return scores[:, :vocab_size]


class PlaceholderGeneration:
    """`generate` for prompts with placeholders; comes before `GenerationMixin` among the base classes."""

    config: Any

    def _visual_ids(self) -> tuple[int, int]:
        return self.config.image_token_id, self.config.video_token_id

    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        return OpenVocabulary(super()._get_logits_processor(*args, **kwargs), self._visual_ids())  # type: ignore[misc]

    def _get_candidate_generator(self, *args, **kwargs):
        """Prompt lookup asks the processors about ids of the prompt, in as many columns as it knows of."""
        generator = super()._get_candidate_generator(*args, **kwargs)  # type: ignore[misc]
        if isinstance(generator, PromptLookupCandidateGenerator):
            generator.vocab_size = max(self.config.text_config.vocab_size, max(self._visual_ids()) + 1)
        return generator

    if Version(INSTALLED) < Version("5.19"):
        # `generate` repeated images one by one, and so mixed up the beams of rows with several of them.

        def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs):
            seen = kwargs.pop("mm_encoder_outputs", None) or {}
            names = ("image", "pixel_values"), ("video", "pixel_values_videos")
            for (kind, name), token_id in zip(names, self._visual_ids(), strict=True) if expand_size > 1 else ():
                if kind not in seen and kwargs.get(name) is not None:
                    where = {"crop_positions": kwargs.pop("crop_positions", None)} if kind == "image" else {}
                    seen[kind] = getattr(self, f"get_{kind}_features")(kwargs.pop(name), **where)
                if kind in seen:
                    positions = (input_ids == token_id).sum(dim=1) // seen[kind].pooler_output.shape[1]
                    rows = seen[kind].pooler_output.split(positions.tolist())
                    seen[kind].pooler_output = torch.cat([row for row in rows for _ in range(expand_size)])
            input_ids, kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
                expand_size, is_encoder_decoder, input_ids, **kwargs
            )
            return input_ids, kwargs | ({"mm_encoder_outputs": seen} if seen else {})

    if Version(INSTALLED) < Version("5.18"):
        # What was seen went into every step.

        @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
        def prepare_inputs_for_generation(self, *args, is_first_iteration=False, **kwargs):
            seen = kwargs.pop("mm_encoder_outputs", None)
            if is_first_iteration and seen:
                kwargs["mm_encoder_outputs"] = seen
            return super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)  # type: ignore[misc]


class BoundedSize:
    """Limits the size of a model to its files; comes before `PreTrainedModel` among the base classes."""

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys=None):
        """As in the library, but refuses a configuration far larger than the weights files."""
        if checkpoint_files and expected_keys is None:  # these are of an adapter
            size = sum(os.path.getsize(file) for file in checkpoint_files)
            items = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
            if items > MOST_ITEMS * size:
                raise ValueError(
                    f"config.json describes a model of {items:,} weights, but their files have only {size:,} bytes: "
                    "they do not match, or one of them is damaged."
                )
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, expected_keys=expected_keys
        )


class WholeAdapters:
    """Loads adapters of stage 2 and of the original; comes before `PreTrainedModel` among the base classes."""

    def load_adapter(self, peft_model_id=None, *args, **kwargs):
        """As in the library, which takes only safetensors files of a folder, and leaves missing weights random."""
        if peft_model_id is not None and Version(INSTALLED) < Version("5.18"):
            # Weights of whole modules were not found, and fresh ones took their place.
            settings = find_adapter_config_file(peft_model_id)
            if settings is not None and json.loads(Path(settings).read_text("utf-8")).get("modules_to_save"):
                raise ImportError(
                    f"{peft_model_id} holds whole modules besides LoRA, which transformers {INSTALLED} cannot load: "
                    "install 5.18 or newer, or load the base model and then use "
                    "`peft.PeftModel.from_pretrained(model, folder)`."
                )
        if peft_model_id is not None and Path(peft_model_id, "adapter_model.bin").is_file():
            kwargs["use_safetensors"] = Path(peft_model_id, "adapter_model.safetensors").is_file()
        info = super().load_adapter(peft_model_id, *args, **kwargs)  # type: ignore[misc]
        if info.missing_keys:
            raise ValueError(
                f"The adapter {peft_model_id} lacks {len(info.missing_keys)} weights, which would be random, such as "
                f"{min(info.missing_keys)}. Was it trained on another model?"
            )
        return info


# Every name that is imported above, and every private one that the files of this folder set, override or call.
LEANS_ON = {
    "transformers.initialization": "fresh weights, drawn only where a checkpoint has none",
    "transformers.conversion_mapping.register_checkpoint_conversion_mapping": "the original's weight names",
    "transformers.core_model_loading.ConversionOps": "a step of a conversion between the original's weights and ours",
    "transformers.core_model_loading.WeightConverter": "weights that are split, joined or reshaped",
    "transformers.core_model_loading.WeightRenaming": "weights that are renamed",
    "transformers.generation.candidate_generator.PromptLookupCandidateGenerator": "takes ids of the prompt on trial",
    "transformers.image_processing_backends.PilBackend": "settings of an image processor that needs no torchvision",
    "transformers.integrations.deepspeed.is_deepspeed_zero3_enabled": "whether weights are divided when they are made",
    "transformers.integrations.peft.maybe_load_adapters": "the base model's folder, where an adapter's was given",
    "transformers.masking_utils.create_masks_for_generate": "masks of a static cache",
    "transformers.modeling_layers.GradientCheckpointingLayer": "layers whose activations can be computed anew",
    "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS": "attention by its name",
    "transformers.modeling_utils.load_state_dict": "opens a weights file without reading it",
    "transformers.models.auto.tokenization_auto.get_tokenizer_config": "which class a folder's tokenizer has",
    "transformers.models.auto.tokenization_auto.tokenizer_class_from_name": "that class",
    "transformers.quantizers.quantizers_utils.should_convert_module": "what a list of modules to skip leaves alone",
    "transformers.tokenization_utils_tokenizers.TokenizersBackend": "a tokenizer that is data alone",
    "transformers.utils.find_adapter_config_file": "settings of an adapter's folder or repository",
    "transformers.utils.torch_compilable_check": "a check that compiled code may hold",
    "transformers.utils.chat_template_utils.render_jinja_template": "a chat as text, and where answers lie in it",
    "transformers.utils.generic.can_return_tuple": "`return_dict=False`",
    "transformers.utils.generic.merge_with_config_defaults": "`output_attentions` and the like from a configuration",
    "transformers.utils.hub.cached_file": "a file of a folder or repository",
    "transformers.utils.hub.get_checkpoint_shard_files": "the shards of an index",
    "transformers.utils.output_capturing.capture_outputs": "hidden states and attentions of layers",
    "transformers.video_processing_utils.VideoProcessorMixin": "saves and loads a video processor",
    "transformers.GenerationMixin._get_logits_processor": "processors of logits index by the ids of a prompt",
    "transformers.GenerationMixin._get_candidate_generator": "so does prompt lookup",
    "transformers.GenerationMixin._expand_inputs_for_generation": "repeats the images of a row together, before 5.19",
    "transformers.PreTrainedConfig._attn_implementation": "which attention a part has",
    "transformers.PreTrainedModel._from_config": "builds a part",
    "transformers.PreTrainedModel._can_compile_fullgraph": "`generate` may compile a step",
    "transformers.PreTrainedModel._can_record_outputs": "which layers `output_attentions` and the like look at",
    "transformers.PreTrainedModel._fsdp_plan": "how FSDP cuts the head",
    "transformers.PreTrainedModel._keys_to_ignore_on_load_unexpected": "a head is none of the base model's",
    "transformers.PreTrainedModel._no_split_modules": "what stays on one device",
    "transformers.PreTrainedModel._skip_keys_device_placement": "a cache stays where it is",
    "transformers.PreTrainedModel._supports_attention_backend": "attention of vLLM and others",
    "transformers.PreTrainedModel._supports_flash_attn": "flash attention",
    "transformers.PreTrainedModel._supports_flex_attn": "flex attention",
    "transformers.PreTrainedModel._supports_sdpa": "PyTorch's attention",
    "transformers.PreTrainedModel._tied_weights_keys": "where a head is tied, by the language model's own names",
    "transformers.PreTrainedModel._tp_plan": "how tensor parallelism cuts the head",
    "transformers.PreTrainedModel._init_weights": "draws fresh queries, class tokens and positions",
    "transformers.PreTrainedModel._load_pretrained_model": "takes memory for all weights that a configuration wants",
    "transformers.ProcessorMixin._process_images": "counts images: the library's count knows none by path or URL",
    "transformers.ProcessorMixin._process_videos": "counts clips: the library's count knows no image files as frames",
    "transformers.ProcessorMixin._get_num_multimodal_tokens": "tells an engine how many positions an image takes",
    "transformers.ProcessorMixin._get_arguments_from_pretrained": "loads a release, which has no video processor",
    "transformers.ImageTextToTextPipeline._sanitize_parameters": "tells a call's own arguments from `generate`'s",
    "transformers.ImageTextToTextPipeline._forward": "keeps the new tokens of all answers",
    "deepspeed.runtime.zero.partition_parameters.shutdown_init_context": "weights that stay undivided",
    "deepspeed.runtime.zero.partition_parameters.restore_init_context": "the end of that",
}

__all__ = [
    "ALL_ATTENTION_FUNCTIONS",
    "CACHE_NAME",
    "CACHE_NAMES",
    "HUB_NAMES",
    "BoundedSize",
    "ConversionOps",
    "GradientCheckpointingLayer",
    "PilBackend",
    "PlaceholderGeneration",
    "TokenizersBackend",
    "VideoProcessorMixin",
    "WeightConverter",
    "WeightRenaming",
    "WholeAdapters",
    "cached_file",
    "can_return_tuple",
    "capture_outputs",
    "create_masks_for_generate",
    "find_adapter_config_file",
    "get_checkpoint_shard_files",
    "get_tokenizer_config",
    "init",
    "load_state_dict",
    "maybe_load_adapters",
    "merge_with_config_defaults",
    "register_checkpoint_conversion_mapping",
    "render_jinja_template",
    "should_convert_module",
    "tokenizer_class_from_name",
    "torch_compilable_check",
    "undivided",
]
