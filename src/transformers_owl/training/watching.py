"""What a run shows: a table of its parts, loss curves, answers about fixed images."""

from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback

from ..journal import Journal, aside
from ..mplug_owl.video_processing_mplug_owl import visual_part
from .stages import module_table, rated_part


def print_table(model, console, learning_rate: float, learning_rates: dict[str, float]) -> None:
    """Prints a table of a model's parts: parameters, trainable parameters, learning rate and dtypes."""
    from rich.table import Table

    table = Table("part", "parameters", "trainable", "learning rate", "dtype")
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in module_table(model):
        rate = f"{learning_rates.get(rated_part(row['part']), learning_rate):g}" if row["trainable"] else ""
        counts = (f"{row['parameters']:,}", f"{row['trainable']:,}")
        table.add_row(row["part"], *counts, rate, ", ".join(sorted(row["dtypes"])))
    console.print(table)


ANSWERS_FILE = "answers.jsonl"
CURVE = "loss.png"


class Progress(ProgressCallback):
    """The library's progress bar with loss and speed, and the right remaining time after a resume."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, dynamic_ncols=True)
        self.current_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs, **kwargs)
        if self.training_bar is not None and logs and "loss" in logs:
            shown = {"loss": f"{logs['loss']:.4g}"}
            if "tokens_per_second" in logs:
                shown["tokens/s"] = f"{logs['tokens_per_second']:,}"
            self.training_bar.set_postfix(shown)


class LossCurves(TrainerCallback):
    """Draws `CURVE` in the output folder at every checkpoint, and at the end."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            draw_losses(state.log_history, Path(args.output_dir) / CURVE)

    on_train_end = on_save


def draw_losses(log_history: list[dict[str, Any]], path: Path) -> None:
    """Draws the training and evaluation losses over the optimizer steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(entry["step"], float(entry[name])) for entry in log_history if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    with aside(path) as file:
        figure.savefig(file, format="png", dpi=120)


class FixedImages(TrainerCallback):
    """
    Answers about the same images at every evaluation, printed and appended to `answers.jsonl` in the output folder.

    Args:
        processor ([`MplugOwlProcessor`]): Processor of the model.
        images (`list[str]`): Paths or URLs of images and videos.
        prompt (`str`, *optional*): Question about each image; by default none, as before a caption.
        max_new_tokens (`int`, defaults to 40): Maximum number of tokens of an answer.
    """

    def __init__(self, processor, images: list[str], prompt: str | None = None, max_new_tokens: int = 40):
        self.processor = processor
        self.images = images
        self.max_new_tokens = max_new_tokens
        question = [] if prompt is None else [{"type": "text", "text": prompt}]
        chats = [[{"role": "user", "content": [visual_part(image), *question]}] for image in images]
        self.inputs = processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def on_evaluate(self, args, state, control, **kwargs):
        model = kwargs["model"].eval()
        inputs = self.inputs.to(args.device)
        with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            written = model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, synced_gpus=args.world_size > 1, use_cache=True
            )
        answers = self.processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        if state.is_world_process_zero:
            said = list(zip(self.images, answers, strict=True))
            for image, answer in said:
                print(f"step {state.global_step}, {image}: {answer}")
            with Journal(Path(args.output_dir) / ANSWERS_FILE) as journal:
                step = {"step": state.global_step}
                journal.append({**step, "image": image, "answer": answer} for image, answer in said)
