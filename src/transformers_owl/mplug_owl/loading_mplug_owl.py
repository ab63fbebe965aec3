# SPDX-License-Identifier: Apache-2.0
"""Loading: original releases without conversion, adapters, quantisation, and what is refused because weights would be
random or lost.
"""

import copy
import os
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME
from transformers.utils.quantization_config import QuantizationConfigMixin, QuantizationMethod

from .generation_mplug_owl import default_generation_config
from .library_mplug_owl import (
    HUB_NAMES,
    BoundedSize,
    WholeAdapters,
    cached_file,
    maybe_load_adapters,
    should_convert_module,
)
from .opening_mplug_owl import ADAPTER_NAMES
from .weights_mplug_owl import (
    read_original,
    refuse_original_arguments,
    refuse_random_weights,
    temporal_weights,
    weight_files,
)


class CompleteWeights(PreTrainedModel):
    """Refuses folders that lack weights of the model."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, output_loading_info: bool = False, **kwargs):
        """As in the library, but missing weights, which would be random, raise a ValueError."""
        hub_kwargs = {name: kwargs[name] for name in HUB_NAMES if name in kwargs}  # the library takes them out
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        model, info = loaded
        if info["missing_keys"] and pretrained_model_name_or_path is not None:
            # A configuration that sees videos may be given for a model that does not.
            written, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)
            parts = (written, written.get("vision_config") or {}, written.get("visual_abstractor_config") or {})
            is_video = any(part.get("use_temporal", False) for part in parts)
            fresh = set() if is_video else temporal_weights(model.state_dict())
            if all(part.get("max_crops", 1) == 1 for part in parts):  # nor does one without crops have their weights
                info = {**info, "missing_keys": {name for name in info["missing_keys"] if "crop_" not in name}}
            refuse_random_weights(pretrained_model_name_or_path, info, fresh)
        return loaded if output_loading_info else model


class FromOriginal(WholeAdapters, BoundedSize, CompleteWeights):
    """Loads folders and repositories of the original release without conversion."""

    def load_adapter(self, peft_model_id=None, *args, **kwargs):
        """As in the library; the files of a folder are checked before they are opened."""
        if peft_model_id is not None and os.path.isdir(peft_model_id):
            weight_files(peft_model_id, ADAPTER_NAMES)
        return super().load_adapter(peft_model_id, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        As in the library; an original release loads without conversion. Its generation settings never took effect in
        the original code, which decoded greedily up to EOS; so does this one. Quantisation by bitsandbytes, torchao or
        quanto skips the visual parts, unless its configuration lists modules to skip.
        """
        refuse_original_arguments(kwargs)
        adapter, fields = None, {}
        hub_kwargs: Any = {name: kwargs[name] for name in HUB_NAMES if name in kwargs}
        if pretrained_model_name_or_path is not None and set(kwargs).isdisjoint(("gguf_file", "variant")):
            adapter_kwargs = kwargs.get("adapter_kwargs") or {}
            adapter, base, _ = maybe_load_adapters(pretrained_model_name_or_path, {**hub_kwargs}, **adapter_kwargs)
            fields = read_original(base, **hub_kwargs)
            if hub_kwargs.get("force_download"):  # weights and tokenizer are here now, what is small is fetched anew
                for name in (CONFIG_NAME, GENERATION_CONFIG_NAME):
                    cached_file(base, name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
                kwargs["force_download"] = hub_kwargs["force_download"] = False
            weight_files(base, **hub_kwargs)  # what it returns is checked
            if adapter is not None:
                own = {name: adapter_kwargs[name] for name in HUB_NAMES if name in adapter_kwargs}
                weight_files(adapter, ADAPTER_NAMES, **{**hub_kwargs, **own})
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = spare_visual_parts(kwargs["quantization_config"])
            if fields:
                vision = "model.vision_model" if cls.can_generate() else "vision_model"
                check_quantization_of_release(kwargs["quantization_config"], vision)
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
            for name, value in fields.items():
                if isinstance(value, dict):
                    getattr(config, name).update(value)
                else:
                    setattr(config, name, value)
        else:
            kwargs = {**fields, **kwargs}
        if adapter is not None:  # what the library tells of loading is of the adapter alone
            given = fields if config is None else {}
            super().from_pretrained(base, config=config, device_map="meta", **given, **hub_kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if fields and model.can_generate() and "generation_config" not in kwargs:
            model.generation_config = default_generation_config(model.config)
        return loaded


# Where a quantisation method lists the modules that it leaves alone, of those that were tried.
SKIP_FIELDS = {
    QuantizationMethod.BITS_AND_BYTES: "llm_int8_skip_modules",
    QuantizationMethod.TORCHAO: "modules_to_not_convert",
    QuantizationMethod.QUANTO: "modules_to_not_convert",
}


def spare_visual_parts(quantization_config: Any) -> QuantizationConfigMixin:
    """Leaves vision model, abstractor and head in their own dtype, unless the configuration lists modules to skip."""
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    field = SKIP_FIELDS.get(quantization_config.quant_method)
    if field is not None and getattr(quantization_config, field) is None:
        quantization_config = copy.deepcopy(quantization_config)
        parts = ["vision_model", "abstractor"]
        setattr(quantization_config, field, [*parts, *(f"model.{part}" for part in parts), "lm_head"])
    return quantization_config


def check_quantization_of_release(quantization_config: QuantizationConfigMixin, vision: str) -> None:
    """Raises a ValueError if q, k or v of the vision model would be lost, which are one weight in a release."""
    method: Any = quantization_config.quant_method
    name = getattr(method, "value", method)
    if method not in SKIP_FIELDS:
        raise ValueError(f"{name} cannot quantise an original release: use bitsandbytes, torchao or quanto.")
    skipped = getattr(quantization_config, SKIP_FIELDS[method])
    ending = ".weight" if method == QuantizationMethod.TORCHAO else ""  # its list is of parameters
    parts = [f"{vision}.layers.0.self_attn.{part}_proj{ending}" for part in "qkv"]
    all_or_none = [{False}, {True}] if method == QuantizationMethod.BITS_AND_BYTES else [{False}]
    if {should_convert_module(part, skipped) for part in parts} not in all_or_none:
        raise ValueError(
            f"{name} cannot quantise the vision model of an original release, whose query, key and value are one "
            f'weight: add "{vision}" to `{SKIP_FIELDS[method]}`, or convert the release first with `transformers-owl '
            "convert`."
        )
