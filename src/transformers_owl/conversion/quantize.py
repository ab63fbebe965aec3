"""Quantised copies of a checkpoint: the language model in 8 or 4 bits, the visual parts unchanged."""

from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from .. import MplugOwlForConditionalGeneration, MplugOwlProcessor
from ..mplug_owl.configuration_mplug_owl import check_names
from .card import render
from .checkpoints import Checkpoint, unfinished
from .verify import logits, relative_difference


def torchao_int8() -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def torchao_int4() -> TorchAoConfig:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    int4 = torch.int4  # type: ignore[attr-defined]
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(32)))


METHODS = {
    "bitsandbytes-8bit": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes-4bit": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "torchao-int8": torchao_int8,
    "torchao-int4": torchao_int4,
}


def quantize(checkpoint: str, method: str, output: Path, max_shard_size: str = "5GB") -> float:
    """
    Writes a quantised copy. The whole model is held in memory.

    Args:
        checkpoint (`str`): Folder, REPO or REPO@REVISION.
        method (`str`): A name in `METHODS`.
        output (`Path`): Folder to create.
        max_shard_size (`str`, defaults to `"5GB"`): Maximum size of a weights file.

    Returns:
        `float`: The error of the logits on a fixed prompt and image, relative to the largest logit.

    Raises:
        ValueError: for an unknown method, and if `output` exists.
        OSError: if the checkpoint cannot be read or `output` cannot be written.
    """
    check_names([method], METHODS, "method")
    source = Checkpoint.parse(checkpoint)
    model = MplugOwlForConditionalGeneration.from_pretrained(
        source.path, revision=source.revision, dtype="auto", quantization_config=METHODS[method]()
    )
    with unfinished(output) as folder:
        # Saved before it runs: bitsandbytes repacks its weights when it first computes on a CPU.
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        del model
        MplugOwlProcessor.from_pretrained(source.path, revision=source.revision).save_pretrained(folder)
        error = relative_difference(logits(str(folder)), logits(checkpoint))
        made = f"The language model of {source.name}, quantised by {method}; relative error of the logits {error:.2g}."
        (folder / "README.md").write_text(render(output.name, output.name, made), encoding="utf-8")
    return error
