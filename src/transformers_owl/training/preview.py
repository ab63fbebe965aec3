"""A preview of a recipe, without training."""

from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from .collator import IGNORED
from .mixture import Mixture, MixtureLoader
from .train import prepare


GIB = 2**30


def preview(recipe: str | Path | None, options: list[str], console: Console | None = None) -> None:
    """
    Reads the recipe, loads the model, opens the data, and prints the trained parts, steps and epochs, the memory of
    weights, gradients and AdamW's states, and the first micro-batch, with the trained tokens in bold green.

    Raises:
        ValueError: for an invalid recipe or data.
    """
    console = console or Console()
    run = prepare(recipe, options, console)
    batch = next(iter(MixtureLoader(run.mixture)))
    console.print(f"{run.args.max_steps} optimizer steps of {_rows(run.mixture)} rows each; {_epochs(run)}.")
    console.print(f"Memory on one device, without activations: {memory(run.model) / GIB:.2f} GiB.")
    for number, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        console.print(Text(f"Row {number + 1}:", style="bold"))
        kept = batch["attention_mask"][number].bool() if "attention_mask" in batch else torch.ones_like(ids).bool()
        console.print(labelled(run.processor, ids[kept], labels[kept]), soft_wrap=True)


def memory(model: torch.nn.Module) -> int:
    """Bytes of weights, gradients, and AdamW's two moments in float32 for each trained weight."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) + 12 * trained


def labelled(processor, ids: torch.Tensor, labels: torch.Tensor) -> Text:
    """A row (positions,) as text, with trained tokens in bold green, and the positions of images and videos counted."""
    text = Text()
    names = {processor.image_token_id: "image", processor.video_token_id: "video"}
    kinds = [(names.get(int(id), "text"), int(label) != IGNORED) for id, label in zip(ids, labels, strict=True)]
    start = 0
    for end in range(1, len(kinds) + 1):
        if end == len(kinds) or kinds[end] != kinds[start]:
            kind, is_learned = kinds[start]
            if kind == "text":
                text.append(processor.tokenizer.decode(ids[start:end]), style="bold green" if is_learned else "")
            else:
                text.append(f"[{kind}: {end - start} positions]", style="dim")
            start = end
    return text


def _rows(mixture: Mixture) -> int:
    return mixture.batch_size * mixture.accumulation * mixture.world_size


def _epochs(run) -> str:
    steps = run.mixture.steps_an_epoch
    if steps is None:
        return "the number of samples in tar shards is unknown"
    counts = ", ".join(f"{name} {len(group.data):,}" for name, group in run.mixture.groups.items())
    return f"samples per epoch: {counts}; {float(run.args.max_steps / steps):.4g} epochs in all"
