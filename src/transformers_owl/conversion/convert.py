"""A repository of the Hub from a checkpoint of the original release, or a fine-tune of one, tensor by tensor."""

from pathlib import Path

import torch

from .. import MplugOwlProcessor
from .card import render
from .checkpoints import Checkpoint, open_owl
from .finetunes import convert_fine_tune, is_fine_tune
from .packing import check_scheme, write_repository


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
    Makes a Hub repository of a release or a fine-tune. An interrupted run goes on where it stopped.

    Args:
        checkpoint (`str`): Folder, FILE, REPO or REPO@REVISION of a release, or of a fine-tune as the original's
            Trainer or `torch.save(model.state_dict(), FILE)` saved it.
        output (`Path`): Folder to make.
        dtype (`torch.dtype`, *optional*): Type of the weights; unchanged by default.
        max_shard_size (`str`, defaults to `"5GB"`): Largest file of weights.
        base (`str`, *optional*): What a fine-tune was trained from: its configuration and processor are taken, and
            the weights that the fine-tune does not hold.
        lora_alpha (`float`, *optional*): LoRA's alpha. By default that of `adapter_config.json` beside a fine-tune,
            or else 32, as the original trained.
        keep_adapter (`bool`, defaults to `False`): Make a PEFT adapter for the base in place of a repository.
        quantize (`str`, *optional*): "int8" or "int4" for the language model's linear layers, tensor by tensor. The
            rest is bfloat16 then, unless `dtype` says otherwise.

    Raises:
        ValueError: for a checkpoint that is damaged or of another model, and an `output` that exists.
        OSError: if it cannot be read, or `output` not be written.
    """
    check_scheme(quantize)
    source = Checkpoint.parse(checkpoint)
    if quantize is not None:
        dtype = dtype or torch.bfloat16
    if base is not None or Path(source.path).is_file() or is_fine_tune(source):
        convert_fine_tune(source, output, dtype, max_shard_size, base, lora_alpha, keep_adapter, quantize)
    elif keep_adapter or lora_alpha is not None:
        raise ValueError(f"{checkpoint} is no fine-tune with LoRA: leave out --keep-adapter and --lora-alpha.")
    else:
        model, pieces = open_owl(source, dtype)
        processor = MplugOwlProcessor.from_pretrained(source.path, revision=source.revision)
        plan = [source.fingerprint(), str(dtype), max_shard_size, quantize]
        write_repository(
            model, pieces, processor, output, plan, max_shard_size, quantize, render(source.name, output.name)
        )
