"""The card of a trained model: base model, trained parts, data, length of the run, and loss curve."""

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from transformers import SchedulerType, TrainerState, TrainingArguments

from ..conversion.card import OWN_MODEL, render
from .arguments import OwlArguments
from .watching import CURVE


def write_card(owl: OwlArguments, args: TrainingArguments, state: TrainerState) -> None:
    """
    Writes `README.md` to `output_dir`, also over PEFT's. It names only the last part of local paths, URLs without
    possible secrets, and no commands.

    Args:
        owl, args: The settings of the recipe.
        state (`TrainerState`): State of the Trainer at the end of the run.
    """
    folder = Path(str(args.output_dir))
    curve = f"\n\n![The loss over the optimizer steps]({CURVE})" if (folder / CURVE).exists() else ""
    card = render(
        folder.name,
        args.hub_model_id or folder.name,
        base_model=None if Path(owl.model).exists() else [owl.model],
        data_file=OWN_MODEL,
        training=f"{summary(owl, args, state)}\n\n{data(owl)}",
        results=results(state) + curve,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def summary(owl: OwlArguments, args: TrainingArguments, state: TrainerState) -> str:
    parts = ", ".join(owl.trains or owl.parts.trains) or "nothing"
    lora = owl.parts.lora
    adapted = f"; LoRA (rank {owl.lora_r}, alpha {owl.lora_alpha}) on {', '.join(lora)}" if lora else ""
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return (
        f"Trained from `{named(owl.model, is_hub=True)}` by `transformers-owl train`, stage `{owl.stage}`: {parts} "
        f"train{adapted}. "
        f"{state.global_step} optimizer steps of {rows} rows, {state.epoch or 0:.2f} epochs, learning rate "
        f"{args.learning_rate:g} ({SchedulerType(args.lr_scheduler_type).value}), seed {args.seed}."
    )


def data(owl: OwlArguments) -> str:
    lines = ["| data | weight | sources |", "|---|---|---|"]
    for name, group in owl.data.items():  # type: ignore[union-attr]
        sources = ", ".join(
            f"`{named(source['path'], is_hub=source['format'] == 'dataset')}` ({source['format']})"
            for source in group["sources"]
        )
        lines.append(f"| {name} | {group.get('weight', 1)} | {sources} |")
    return "\n".join(lines)


def results(state: TrainerState) -> str:
    """The last loss, and the results of the last evaluation."""
    last: dict[str, float] = {}
    for entry in state.log_history:
        last |= {name: value for name, value in entry.items() if name == "loss" or name.startswith("eval_")}
    titles = {name: f"{name.removeprefix('eval_')}, evaluation" for name in last} | {"loss": "loss, training"}
    timing = ("_runtime", "_per_second")
    rows = [f"| {titles[name]} | {float(value):.4g} |" for name, value in last.items() if not name.endswith(timing)]
    return "\n".join(["| | at the end |", "|---|---|", *rows])


def named(source: str, is_hub: bool) -> str:
    """A Hub repository unchanged, a URL without user and query, anything else by its last part."""
    if source.startswith("pipe:"):
        return "a command"
    if "://" in source:
        parts = urlsplit(source)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return source if is_hub and not Path(source).exists() else Path(source).name
