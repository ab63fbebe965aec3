"""Writes a quantised copy of a checkpoint: the language model in 8 or 4 bits, everything that sees as it was.

python conversion/quantize.py --checkpoint build/mplug-owl-llama-7b --method bitsandbytes-8bit --output build/owl-8bit

Prints the error of the logits on a fixed prompt and picture. Needs memory for the whole model, and the library
(`pip install ".[quantize]"`).
"""

from pathlib import Path
from typing import Annotated

import torch
from card import render
from checkpoints import Checkpoint, unfinished
from command import run
from transformers import BitsAndBytesConfig, TorchAoConfig
from typer import Option
from verify import logits, relative_difference

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlProcessor


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


def main(
    checkpoint: Annotated[str, Option(help="Folder, REPO or REPO@REVISION.")],
    method: Annotated[str, Option(help=f"One of {', '.join(METHODS)}.")],
    output: Annotated[Path, Option(help="Folder to make.")],
    max_shard_size: Annotated[str, Option(help="Largest file of weights.")] = "5GB",
) -> None:
    """Write a copy with a quantised language model."""
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r}: choose one of {', '.join(METHODS)}.")
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
    print(f"{output} is complete. Relative error of the logits: {error:.3g}")


if __name__ == "__main__":
    run(main)
