"""Converts a checkpoint of the original release, or a fine-tune of one, to a Hub repository, tensor by tensor."""

from pathlib import Path

import torch

from .. import MplugOwlProcessor
from .card import render
from .checkpoints import Checkpoint, open_owl
from .finetunes import convert_fine_tune, is_fine_tune
from .packed_weights import check_scheme, write_repository


def convert(
    checkpoint: str,
    output: Path,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    base: str | None = None,
    lora_alpha: float | None = None,
    keep_adapter: bool = False,
    quantize: str | None = None,
) -> None:
    """
    Converts a release or a fine-tune to a Hub repository. An interrupted run resumes.

    Args:
        checkpoint (`str`): Folder, FILE, REPO or REPO@REVISION of a release, or of a fine-tune as the original's
            Trainer or `torch.save(model.state_dict(), FILE)` saved it.
        output (`Path`): Folder to create.
        dtype (`torch.dtype`, *optional*): Dtype of the weights; by default unchanged.
        max_shard_size (`str`, defaults to `"5GB"`): Maximum size of a weights file.
        base (`str`, *optional*): Base model of a fine-tune, which gives configuration, processor and the weights that
            the fine-tune does not hold.
        lora_alpha (`float`, *optional*): Alpha of LoRA. By default that of `adapter_config.json` beside a fine-tune,
            else 32, as in the original's training.
        keep_adapter (`bool`, defaults to `False`): Whether to write a PEFT adapter for the base instead of a whole
            model.
        quantize (`str`, *optional*): "int8" or "int4": quantises the language model's linear layers, tensor by tensor.
            The rest is bfloat16, unless `dtype` is given.

    Raises:
        ValueError: for a checkpoint that is damaged or of another model, and if `output` exists.
        OSError: if the checkpoint cannot be read or `output` cannot be written.
    """
    check_scheme(quantize)
    source = Checkpoint.parse(checkpoint)
    if quantize is not None:
        dtype = dtype or torch.bfloat16
    if base is not None or Path(source.path).is_file() or is_fine_tune(source):
        convert_fine_tune(source, output, dtype, max_shard_size, base, lora_alpha, keep_adapter, quantize)
    elif keep_adapter or lora_alpha is not None:
        raise ValueError(f"{checkpoint} is not a fine-tune with LoRA: leave out --keep-adapter and --lora-alpha.")
    else:
        model, pieces = open_owl(source, dtype)
        processor = MplugOwlProcessor.from_pretrained(source.path, revision=source.revision)
        plan = [source.fingerprint(), str(dtype), max_shard_size, quantize]
        write_repository(
            model, pieces, processor, output, plan, max_shard_size, quantize, render(source.name, output.name)
        )
