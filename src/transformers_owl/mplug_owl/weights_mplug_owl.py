# SPDX-License-Identifier: Apache-2.0
"""The released checkpoints and the original's code: their names and ours, and what only their files know.

A rule is `(their name, our name)`, regular expressions on the names below one module; rules apply in order. To write
the original's names the library reads all of them backwards, so each must tell which of our names it made.
"""

import json
import re

import torch
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from .library_mplug_owl import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    cached_file,
    get_checkpoint_shard_files,
    load_state_dict,
    register_checkpoint_conversion_mapping,
)
from .opening_mplug_owl import check_weights, named_damage, read_index
from .tokenization_mplug_owl import IMAGE_TOKEN, VIDEO_TOKEN, MplugOwlTokenizer


# In the order that the library looks for them.
NAMES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


def _tensor(collected: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return collected[0] if isinstance(collected, list) else collected


def head_dim_of(model) -> int:
    """Width of an attention head of the vision model; a process may hold only some of the heads."""
    config = model.config if model.config.base_config_key == "vision_config" else model.config.vision_config
    return config.hidden_size // config.num_attention_heads


class SplitHeads(ConversionOps):
    """One tensor with rows [head][part][head_dim] to one tensor a part: the vision model's fused q, k and v."""

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, full_layer_name, model, **kwargs):
        (fused,) = map(_tensor, input_dict.values())
        rows = len(target_patterns) * head_dim_of(model)  # of a head
        if len(fused) % rows:
            raise ValueError(
                f"This process got {len(fused)} rows of a fused weight, which are not whole heads of {rows} rows: use "
                "a number of processes that divides the number of heads, or convert the release first "
                "(`transformers-owl convert`): converted weights can be split anywhere."
            )
        parts = fused.unflatten(0, (-1, len(target_patterns), head_dim_of(model))).unbind(1)
        return {name: part.flatten(0, 1).contiguous() for name, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self):
        return MergeHeads()


class MergeHeads(ConversionOps):
    """The reverse of [`SplitHeads`]."""

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, full_layer_name, model, **kwargs):
        parts = [_tensor(input_dict[name]) for name in source_patterns]
        fused = torch.stack([part.unflatten(0, (-1, head_dim_of(model))) for part in parts], dim=1)
        return {target_patterns[0]: fused.flatten(0, 2).contiguous()}

    @property
    def reverse_op(self):
        return SplitHeads()


class DropSize1Dims(ConversionOps):
    """A 3D convolution's weight to that of a linear layer (`ndim` 2) or of a 1D convolution (`ndim` 3)."""

    def __init__(self, ndim: int):
        self.ndim = ndim

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        (weight,) = map(_tensor, input_dict.values())
        return {target_patterns[0]: [weight.flatten(self.ndim - 1).contiguous()]}  # quanto takes the first of a list

    @property
    def reverse_op(self):
        return AddSize1Dims(self.ndim)


class AddSize1Dims(ConversionOps):
    """The reverse of [`DropSize1Dims`]: the weight of a 3D convolution."""

    def __init__(self, ndim: int):
        self.ndim = ndim

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        (weight,) = map(_tensor, input_dict.values())
        return {target_patterns[0]: weight[(...,) + (None,) * (5 - self.ndim)].contiguous()}

    @property
    def reverse_op(self):
        return DropSize1Dims(self.ndim)


# What stands below `model` here stood at the top there.
PARTS = "(vision_model|abstractor|language_model|query_tokens|temporal_query_tokens)"
RENAMINGS = {
    "MplugOwlForConditionalGeneration": [
        (r"^language_model\.lm_head\.", r"^lm_head\."),
        (rf"^{PARTS}", r"^model\.\1"),
    ],
    "MplugOwlModel": [
        (r"^language_model\.model\.(layers|norm|embed_tokens)\.", r"^language_model\.\1\."),
        (r"^language_model\.transformer\.(h|ln_f|word_embeddings)\.", r"^language_model\.\1\."),
        (r"^language_model\.transformer\.word_embeddings_layernorm\.", r"^embedding_norm\."),
        (r"^query_tokens", r"^abstractor\.query_tokens"),
        (r"^temporal_query_tokens", r"^abstractor\.temporal_query_tokens"),
    ],
    "MplugOwlVisionModel": [
        (r"^encoder\.layers\.", r"^layers\."),
        (r"\.self_attn\.dense\.", r"\.self_attn\.out_proj\."),
    ],
    "MplugOwlVisualAbstractorModel": [
        (r"^encoder\.layers\.", r"^layers\."),
        (r"\.crossattention\.attention\.query\.", r"\.cross_attn\.q_proj\."),
        (r"\.crossattention\.attention\.key\.", r"\.cross_attn\.k_proj\."),
        (r"\.crossattention\.attention\.value\.", r"\.cross_attn\.v_proj\."),
        (r"\.crossattention\.output\.out_proj\.", r"\.cross_attn\.out_proj\."),
        (r"\.crossattention\.output\.(norm2|mlp)\.", r"\.\1\."),
        (r"\.crossattention\.(norm1|normk)\.", r"\.\1\."),
    ],
}
CONVERTERS = {
    "MplugOwlVisionModel": [
        ("self_attn.query_key_value", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], SplitHeads()),
        ("temporal.down_proj.weight", ["temporal.down_proj.weight"], DropSize1Dims(2)),
        ("temporal.conv.weight", ["temporal.conv.weight"], DropSize1Dims(3)),
        ("temporal.up_proj.weight", ["temporal.up_proj.weight"], DropSize1Dims(2)),
    ],
}

for class_name, renamings in RENAMINGS.items():
    register_checkpoint_conversion_mapping(
        class_name,
        [WeightRenaming(theirs, ours) for theirs, ours in renamings]
        + [WeightConverter(theirs, ours, [operation]) for theirs, ours, operation in CONVERTERS.get(class_name, [])],
        overwrite=True,
    )
# PEFT asks by the type of a model whether there is a table, and then for those of its classes.
register_checkpoint_conversion_mapping("mplug-owl", [], overwrite=True)


WRAPPER = "base_model.model."  # PEFT's own, before the names of a model
CONVERT = "`transformers-owl convert --checkpoint {} --base RELEASE --output FOLDER`"
WIDTH = "abstractor.encoder.layers.0.crossattention.output.mlp.w1.weight"
OUR_WIDTHS = ("model.abstractor.layers.0.mlp.w1.weight", "abstractor.layers.0.mlp.w1.weight")
TEMPORAL = re.compile(r"(^|\.)temporal(_query_tokens|_visual_fc)?(\.|$)")


def temporal_weights(names) -> set[str]:
    """The weights for videos, under our names or the original's."""
    return {name for name in names if TEMPORAL.search(name)}


def refuse_random_weights(path, info: dict, fresh: set[str]) -> None:
    """
    Raises a ValueError if a folder or repository lacks weights, which would be random.

    Args:
        path (`str`): The folder or repository.
        info (`dict`): The library's loading info.
        fresh (`set[str]`): Weights that may be missing if all of them are. A head may always be missing.
    """
    missing = set(info["missing_keys"]) - {"lm_head.weight"}
    lacking = sorted(missing - fresh if fresh <= missing else missing)
    if lacking:
        strange = info["unexpected_keys"]
        others = f"; {len(strange)} are unexpected, such as {min(strange)}" if strange else ""
        raise ValueError(
            f"{path} lacks weights of the model, which would be random: {len(lacking)}, such as "
            f"{', '.join(lacking[:3])}{others}. Download it again, or check config.json. If the original code trained "
            f"it, {CONVERT.format(path)} makes a folder that loads."
        )


def read_original(pretrained_model_name_or_path, **hub_kwargs) -> dict:
    """
    Reads configuration fields that only the files of an original release tell; `{}` for any other folder:

    - the width of the abstractor's feed-forward layers, which is wrong in several `config.json`;
    - whether it is a video model;
    - the ids of the placeholders, if the tokenizer has fewer entries than the model has rows (Bloom).

    Weights under our names with the `config.json` of a release count as a release.

    Args:
        pretrained_model_name_or_path (`str`): A folder, or a repository on the Hub.
        hub_kwargs: `revision`, `token`, `cache_dir` and the like, as for `from_pretrained`.

    Returns:
        `dict`: Fields of [`MplugOwlConfig`], those of its parts as dictionaries.

    Raises:
        ValueError: for a whole model under PEFT's names, as the original's Trainer saved fine-tunes.
    """
    file_of = _weight_files(pretrained_model_name_or_path, **hub_kwargs)
    if any(name.startswith(WRAPPER) for name in file_of):
        raise ValueError(
            f"{pretrained_model_name_or_path} is a fine-tune as the original's Trainer saved it, under PEFT's names "
            f"({WRAPPER}...): {CONVERT.format(pretrained_model_name_or_path)} makes a folder that loads."
        )
    width = _width_of_original(file_of, pretrained_model_name_or_path, **hub_kwargs)
    if width is None:
        return {}
    fields = original_fields(file_of, _open_lazily(file_of[width])[width].shape[0])
    tokenizer_files = ("tokenizer.json", "tokenizer.model")
    if any(_find(pretrained_model_name_or_path, name, **hub_kwargs) for name in tokenizer_files):
        tokenizer = MplugOwlTokenizer.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
        fields["image_token_id"] = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        fields["video_token_id"] = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
    return fields


def original_fields(names, width: int) -> dict:
    """
    Configuration fields that follow from the weights of a release.

    Args:
        names (`Iterable[str]`): Names of the weights.
        width (`int`): Rows of the weight `WIDTH`.
    """
    use_temporal = bool(temporal_weights(names))
    return {
        "vision_config": {"use_temporal": use_temporal},
        "visual_abstractor_config": {"intermediate_size": width, "use_temporal": use_temporal},
    }


# Arguments of the original's model and loading, and the line to write in their place.
ARGUMENTS = {
    "video_pixel_values": "pixel_values_videos=video_pixel_values.permute(0, 2, 1, 3, 4)",
    "num_images": "nothing: `input_ids` tell which row an image belongs to",
    "num_videos": "nothing: `input_ids` tell which row a video belongs to",
    "non_padding_mask": "attention_mask=inputs['attention_mask'] of MplugOwlProcessor",
    "non_media_mask": "labels that are -100 where there is no loss",
    "prompt_mask": "labels that are -100 where there is no loss",
    "load_in_8bit": "quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
    "load_in_4bit": "quantization_config=BitsAndBytesConfig(load_in_4bit=True)",
}
NEGATIVE_IDS = (
    "input_ids hold negative ids, which marked images and videos in the original's code: prepare text and pixels with "
    "MplugOwlProcessor, or replace -1 by processor.image_token_id and -2 by processor.video_token_id."
)


def refuse_original_arguments(given: dict) -> None:
    """Raises a ValueError for an argument of the original's code, with its replacement here."""
    for name, line in ARGUMENTS.items():
        if given.get(name) is not None:
            raise ValueError(f"{name} is an argument of the original's code: pass {line} (docs/from-the-original.md).")


def refuse_original_weights(module, state_dict: dict, prefix: str, *_) -> None:
    """A hook of `load_state_dict`: raises a ValueError for weights under the original's names."""
    theirs = tuple(prefix + name for name in ("query_tokens", "language_model.model.", "language_model.transformer."))
    if any(name.startswith(theirs) for name in state_dict):
        raise ValueError(
            "load_state_dict got weights under the original's names. `from_pretrained` loads a folder of them without "
            f"conversion; for a file, {CONVERT.format('FILE')} makes a folder that loads."
        )


def _weight_files(path, **hub_kwargs) -> dict[str, str]:
    """The file of every weight by name, in the library's order of preference; no values are read."""
    for name in NAMES:
        if (file := _find(path, name, **hub_kwargs)) is not None:
            if not name.endswith(".index.json"):
                return dict.fromkeys(_open_lazily(file), file)
            shard_of = read_index(file)
            if _width_of_original(shard_of, path, **hub_kwargs) is None:
                return shard_of  # not a release: the names are enough, and other shards need not be fetched
            shards, _ = get_checkpoint_shard_files(path, file, **hub_kwargs)
            return {key: shards[sorted(set(shard_of.values())).index(shard)] for key, shard in shard_of.items()}
    return {}


def _width_of_original(names, path, **hub_kwargs) -> str | None:
    """The name of the weight whose rows are the abstractor's width, if weights or configuration are the original's."""
    if WIDTH in names:
        return WIDTH
    ours = next((name for name in OUR_WIDTHS if name in names), None)
    if ours is None or (file := _find(path, CONFIG_NAME, **hub_kwargs)) is None:
        return None
    with open(file, encoding="utf-8") as config:
        return None if "image_token_id" in json.load(config) else ours


def open_weights(file: str, map_location: str = "cpu") -> dict[str, torch.Tensor]:
    """All tensors of a checked file by name, mapped into memory without reading them."""
    check_weights(file)
    with named_damage(file):
        return load_state_dict(file, map_location=map_location)


def _open_lazily(file: str) -> dict[str, torch.Tensor]:
    return open_weights(file, "meta" if file.endswith(".safetensors") else "cpu")


def weight_files(path, names: tuple[str, ...] = NAMES, **hub_kwargs) -> list[str]:
    """The checked weights files of a folder or repository, in the library's order of preference."""
    for name in names:
        if (file := _find(path, name, **hub_kwargs)) is not None:
            files = [file]
            if name.endswith(".index.json"):
                read_index(file)
                files, _ = get_checkpoint_shard_files(path, file, **hub_kwargs)
            for each in files:
                check_weights(each)
            return files
    return []


def _find(path, name, **hub_kwargs) -> str | None:
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
