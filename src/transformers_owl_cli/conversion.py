"""The commands that make, compare and publish checkpoints; the scripts in conversion/ use the same functions."""

import enum
import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .shared import conversion


class Quantize(enum.StrEnum):
    """Quantisations of the language model's linear layers."""

    INT8 = "int8"
    INT4 = "int4"


class Dtype(enum.StrEnum):
    """Dtypes of written weights, by their names in torch."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def torch_dtype(dtype: Dtype | None):
    import torch

    return None if dtype is None else getattr(torch, dtype)


@conversion(kept="Finished files are kept: the same command resumes.")
def convert(
    checkpoint: Annotated[str, Option(help="Folder, FILE, REPO or REPO@REVISION of a release or a fine-tune.")],
    output: Annotated[Path, Option(help="Folder to create.")],
    dtype: Annotated[Dtype | None, Option(help="Dtype of the weights (default: unchanged).")] = None,
    max_shard_size: Annotated[str, Option(help="Maximum size of a weights file.")] = "5GB",
    base: Annotated[str | None, Option(help="Folder, REPO or REPO@REVISION of a fine-tune's base model.")] = None,
    lora_alpha: Annotated[
        float | None, Option(help="Alpha of LoRA (default: that of adapter_config.json beside it, or 32).")
    ] = None,
    keep_adapter: Annotated[bool, Option("--keep-adapter", help="Write a PEFT adapter for the base.")] = False,
    quantize: Annotated[
        Quantize | None, Option(help="Quantise the language model's linear layers, in little memory.")
    ] = None,
    push_to_hub: Annotated[str | None, Option(metavar="OWNER/NAME", help="Also push to this repository.")] = None,
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    create_pr: Annotated[bool, Option("--create-pr", help="Push as a pull request.")] = False,
) -> None:
    """Convert a checkpoint of the original release, or a fine-tune of one, to a Hub repository."""
    from transformers_owl.conversion.convert import convert
    from transformers_owl.conversion.push import push

    convert(checkpoint, output, torch_dtype(dtype), max_shard_size, base, lora_alpha, keep_adapter, quantize)
    print(f"{output} is complete.")
    if push_to_hub is not None:
        print(push(output, push_to_hub, private=private, create_pr=create_pr).commit_url)


@conversion()
def verify(
    first: Annotated[str, Argument(help="Folder, REPO or REPO@REVISION, original or converted.")],
    second: Annotated[str, Argument(help="Checkpoint to compare with, as the first.")],
    tolerance: Annotated[
        float, Option(min=0, help="Largest allowed difference of a weight, and relative difference of the logits.")
    ] = 0.0,
    skip_logits: Annotated[bool, Option("--skip-logits", help="Compare the weights only, in little memory.")] = False,
) -> None:
    """Compare two checkpoints tensor by tensor through the key table, and by their logits."""
    from rich.console import Console
    from rich.table import Table

    from transformers_owl.conversion.verify import differences, logits, parts, relative_difference

    sides = parts(first), parts(second)
    table = Table("part", "tensors", "equal", "largest difference")
    worst = 0.0
    for part in sorted(sides[0].keys() | sides[1].keys()):
        found = differences(sides[0].get(part, []), sides[1].get(part, []))
        equal = sum(difference == 0 for difference in found.values())
        table.add_row(part, str(len(found)), str(equal), f"{max(found.values()):.3g}")
        worst = max(worst, *found.values())
    if not skip_logits and worst < float("inf"):
        difference = relative_difference(logits(second), logits(first))
        table.add_row("logits", "1", str(int(difference == 0)), f"{difference:.3g} (relative)")
        worst = max(worst, difference)
    Console(width=100).print(table)
    print(f"{'equal' if worst <= tolerance else 'different'}: largest difference {worst:.3g}, tolerance {tolerance:g}")
    sys.exit(worst > tolerance)


@conversion()
def build(
    vision: Annotated[str, Option(help="Folder, REPO or REPO@REVISION of a vision model.")],
    language: Annotated[str, Option(help="Folder, REPO or REPO@REVISION of a causal language model, or a .gguf file.")],
    output: Annotated[Path, Option(help="Folder to create.")],
    dtype: Annotated[Dtype, Option(help="Dtype of the weights.")] = Dtype.BFLOAT16,
    num_query_tokens: Annotated[int, Option(min=1, help="Number of queries of the abstractor.")] = 64,
    num_abstractor_layers: Annotated[int, Option(min=1, help="Number of layers of the abstractor.")] = 6,
    seed: Annotated[int, Option(help="Seed of the abstractor's weights.")] = 0,
    max_shard_size: Annotated[str, Option(help="Maximum size of a weights file.")] = "5GB",
    chat_template: Annotated[str, Option(help="original, language_model (its own), or a Jinja file.")] = "original",
    image_size: Annotated[int | None, Option(help="Side of the images in pixels (default: as trained).")] = None,
    max_crops: Annotated[int, Option(help="Maximum number of cells that an image is also cut into; 1 cuts none.")] = 1,
) -> None:
    """Build a fresh Owl from a vision model and a causal language model."""
    from transformers_owl.conversion.build import build

    sizes = (num_query_tokens, num_abstractor_layers)
    files = (max_shard_size, chat_template)
    build(vision, language, output, torch_dtype(dtype), *sizes, seed, *files, image_size, max_crops)
    print(f"{output} is complete.")


@conversion()
def merge(
    adapter: Annotated[str, Option(help="Folder or repository of the adapter.")],
    base: Annotated[str, Option(help="Folder, REPO or REPO@REVISION of the model that the adapter was trained on.")],
    output: Annotated[Path, Option(help="Folder to create.")],
    dtype: Annotated[Dtype | None, Option(help="Dtype of the merged weights (default: the base's).")] = None,
    max_shard_size: Annotated[str, Option(help="Maximum size of a weights file.")] = "5GB",
) -> None:
    """Merge a PEFT adapter into its base, and write a complete repository."""
    from transformers_owl.conversion.merge import merge

    merge(adapter, base, output, torch_dtype(dtype), max_shard_size)
    print(f"{output} is complete.")


@conversion("quantize")
def quantize(
    checkpoint: Annotated[str, Option(help="Folder, REPO or REPO@REVISION.")],
    method: Annotated[str, Option(help="One of bitsandbytes-8bit, bitsandbytes-4bit, torchao-int8, torchao-int4.")],
    output: Annotated[Path, Option(help="Folder to create.")],
    max_shard_size: Annotated[str, Option(help="Maximum size of a weights file.")] = "5GB",
) -> None:
    """Write a copy with a quantised language model."""
    from transformers_owl.conversion.quantize import quantize

    error = quantize(checkpoint, method, output, max_shard_size)
    print(f"{output} is complete. Relative error of the logits: {error:.3g}")


@conversion()
def export(
    checkpoint: Annotated[str, Option(help="Folder, REPO or REPO@REVISION.")],
    release: Annotated[str, Option(help="Original release whose tokenizer and settings are copied.")],
    output: Annotated[Path, Option(help="Folder to create.")],
    max_shard_size: Annotated[str, Option(help="Maximum size of a weights file.")] = "1GB",
) -> None:
    """Write a checkpoint in the layout of the original release."""
    from transformers_owl.conversion.export import export

    export(checkpoint, release, output, max_shard_size)
    print(f"{output} is complete.")


@conversion()
def push(
    folder: Annotated[Path, Argument(help="Model folder made by convert, build, merge or quantize.")],
    repository: Annotated[str, Argument(help="OWNER/NAME; created if it does not exist.")],
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    create_pr: Annotated[bool, Option("--create-pr", help="Push as a pull request.")] = False,
    update: Annotated[bool, Option("--update", help="Replace the weights of a repository that has files.")] = False,
) -> None:
    """Push a model folder to the Hub in one commit."""
    from transformers_owl.conversion.push import push

    commit = push(folder, repository, private, create_pr, update)
    print(commit.pr_url if create_pr else commit.commit_url)


@conversion()
def card(
    model: Annotated[str, Argument(help="A released model, such as mplug-owl-llama-7b.")],
) -> None:
    """Print the card of a released model."""
    from transformers_owl.conversion.card import releases, render

    if model not in releases():
        raise ValueError(f"{model} has no card: choose one of {', '.join(releases())}.")
    print(render(model, model))
