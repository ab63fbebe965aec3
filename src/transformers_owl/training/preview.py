"""What a recipe would do, without a step of training."""

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
    Reads the recipe, loads the model, opens the data, and prints what trains, steps and epochs, the memory of weights,
    gradients and AdamW's states, and the first micro-batch: its answers, from which the model learns, in bold green.

    Raises:
        ValueError: for a recipe or data that cannot be used.
    """
    console = console or Console()
    run = prepare(recipe, options, console)
    batch = next(iter(MixtureLoader(run.mixture)))
    console.print(f"{run.args.max_steps} optimizer steps of {_rows(run.mixture)} rows each; {_epochs(run)}.")
    console.print(f"Memory on one device, activations not counted: {memory(run.model) / GIB:.2f} GiB.")
    for number, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        console.print(Text(f"Row {number + 1}:", style="bold"))
        kept = batch["attention_mask"][number].bool() if "attention_mask" in batch else torch.ones_like(ids).bool()
        console.print(labelled(run.processor, ids[kept], labels[kept]), soft_wrap=True)


def memory(model: torch.nn.Module) -> int:
    """Bytes of weights, gradients, and AdamW's two moments in float32 of each weight that trains."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) + 12 * trained


def labelled(processor, ids: torch.Tensor, labels: torch.Tensor) -> Text:
    """A row (positions,) as text; what is learned is bold green, and an image's or video's positions are counted."""
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
        return "the number of samples in tar shards is not known"
    counts = ", ".join(f"{name} {len(group.data):,}" for name, group in run.mixture.groups.items())
    return f"samples an epoch: {counts}; {float(run.args.max_steps / steps):.4g} epochs in all"
