"""Merges a PEFT adapter of ours or of the original code (`adapter_model.bin`) into its base."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights

from .. import MplugOwlForConditionalGeneration, MplugOwlProcessor
from ..mplug_owl.opening_mplug_owl import ADAPTER_NAMES
from ..mplug_owl.weights_mplug_owl import WRAPPER, weight_files
from .card import render
from .checkpoints import Checkpoint, held, save_safetensors, unfinished, without_tied, write_rest, write_weights
from .library import SAFE_WEIGHTS_NAME, WeightRenaming, apply_renamings, get_model_conversion_mapping


def with_adapter(base: MplugOwlForConditionalGeneration, adapter: str) -> PeftModel:
    """
    The base with an adapter around its layers; its embeddings are resized to the adapter's.

    Raises:
        ValueError: for missing or unexpected weights, and for an adapter that changes no weights, such as prefix
            tuning.
    """
    weight_files(adapter, ADAPTER_NAMES)  # what it returns is checked
    config = PeftConfig.from_pretrained(adapter)
    if config.is_prompt_learning:
        raise ValueError(
            f"The adapter {adapter} is of type {config.peft_type}, which learns a prompt and changes no weights: it "
            "cannot be merged. Load it by `peft.PeftModel.from_pretrained(model, folder)` instead."
        )
    weights = load_peft_weights(adapter, device="cpu")
    name = next(name for name, module in base.named_modules() if module is base.get_input_embeddings())
    rows = max((len(value) for key, value in weights.items() if key.endswith(f"{name}.weight")), default=0)
    if rows > base.config.text_config.vocab_size:
        base.resize_token_embeddings(rows, mean_resizing=False)
    renamings = [entry for entry in get_model_conversion_mapping(base) if isinstance(entry, WeightRenaming)]
    ours = {WRAPPER + apply_renamings(name.removeprefix(WRAPPER), renamings): value for name, value in weights.items()}
    model = get_peft_model(base, config)
    result: Any = set_peft_model_state_dict(model, ours)
    lacking = [name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name]
    if lacking or result.unexpected_keys:
        raise ValueError(
            f"The adapter {adapter} does not match the base: {len(lacking)} of its weights are missing "
            f"{lacking[:2]}, {len(result.unexpected_keys)} are unexpected {result.unexpected_keys[:2]}. Give the base "
            "that it was trained on."
        )
    return model


def own_processor(adapter: str, before: int, after: int) -> MplugOwlProcessor:
    """The processor in an adapter's folder, which has the added tokens."""
    if not Path(adapter, "tokenizer_config.json").is_file():
        raise ValueError(
            f"The adapter {adapter} has embeddings of {after} tokens, but its base has {before}: save the processor "
            "that it was trained with to its folder (`processor.save_pretrained(folder)`)."
        )
    return MplugOwlProcessor.from_pretrained(adapter)


def merge(adapter: str, base: str, output: Path, dtype: torch.dtype | None = None, max_shard_size: str = "5GB") -> None:
    """
    Writes a repository of an adapter merged into its base. The whole model is held in memory.

    Args:
        adapter (`str`): Folder or repository of the adapter.
        base (`str`): Folder, REPO or REPO@REVISION of the model that it was trained on.
        output (`Path`): Folder to create.
        dtype (`torch.dtype`, *optional*): Dtype of the merged weights; by default the base's.
        max_shard_size (`str`, defaults to `"5GB"`): Maximum size of a weights file.

    Raises:
        ValueError: if the adapter does not match the base, if it has more tokens but no processor with them, and if
            `output` exists.
        OSError: if a file cannot be read or `output` cannot be written.
    """
    source = Checkpoint.parse(base)
    model = MplugOwlForConditionalGeneration.from_pretrained(
        source.path, revision=source.revision, dtype=dtype or "auto"
    )
    processor = MplugOwlProcessor.from_pretrained(source.path, revision=source.revision)
    vocab_size = model.config.text_config.vocab_size
    with torch.no_grad():
        merged = with_adapter(model, adapter).merge_and_unload(safe_merge=True)
    if merged.config.text_config.vocab_size != vocab_size:
        processor = own_processor(adapter, vocab_size, merged.config.text_config.vocab_size)
    head, embeddings = merged.get_output_embeddings().weight, merged.get_input_embeddings().weight
    if not torch.equal(head, embeddings):  # an adapter with embeddings of its own makes two weights of a tied one
        merged.config.tie_word_embeddings = merged.config.text_config.tie_word_embeddings = False
    made = f"The adapter {Path(adapter).name}, merged into {source.name}."
    with unfinished(output) as folder:
        pieces = held(merged.state_dict())
        if merged.config.tie_word_embeddings:
            pieces = without_tied(merged, pieces)
        write_weights(pieces, folder, max_shard_size, save_safetensors, SAFE_WEIGHTS_NAME)
        write_rest(merged, processor, folder, render(output.name, output.name, made))
