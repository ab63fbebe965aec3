"""Repeats the paper's ablation (Table 2) and its four paradigms (Figure 1) with the miniature, at equal steps.

python -m research.miniature.ablation

It needs what `miniature/make.py`, without `--start`, leaves in build/miniature: with it the parts would know what they
are to be taught. Each seed has an abstractor of its own. Cells are trained and scored once, each on a core, beside
others; a run that was interrupted goes on with the next ones. Tables and plot lie in build/miniature/ablation.
"""

import json
import os
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import yaml
from peft import PeftModel
from rich.console import Console
from rich.table import Table

from transformers_owl.evaluation.paper import NEEDED, TABLE_2
from transformers_owl.evaluation.rubric import ABILITIES
from transformers_owl.training.train import train

from .make import FOLDER, HERE, build_fresh, make
from .parts import bfloat16_is_fast
from .scenes import world
from .score import SPLITS, Answerer, marks, questions


HOME = FOLDER / "ablation"
ROWS = 32  # of a step
PRETRAIN_STEPS, INSTRUCT_STEPS = 400, 160
QUESTIONS = 120  # on each ability
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#F0E442", "#CC79A7")  # of Okabe and Ito, for every colour vision
BOTH, TEXT, IMAGES = ("multimodal", "text"), ("text",), ("multimodal",)
# The paper's abilities, in what the miniature can be asked.
GROUPS = {
    "IU": ("format",), "VU": ("name", "colour", "background", "count", "left/right"), "OCR": ("digits", "words"),
    "KTA": ("kind", "facts", "languages"), "RA": ("yes/no", "two pictures"), "MDA": ("second turn",),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """
    A way of training.

    Args:
        title (`str`): Of its row.
        first, second (`str`): Names of stages in `transformers_owl.training.STAGES`, or empty.
        groups (`tuple[str, ...]`): Conversations of the second one.
    """

    title: str
    first: str
    second: str = ""
    groups: tuple[str, ...] = BOTH


TABLE = {
    "r1": Cell("r1 pretraining alone", "pretrain"),
    "r2": Cell("r2 without pretraining", "", "instruct"),
    "r3": Cell("r3 without multimodal tuning", "pretrain", "instruct", TEXT),
    "r4": Cell("r4 without text-only tuning", "pretrain", "instruct", IMAGES),
    "r5": Cell("r5 mPLUG-Owl", "pretrain", "instruct"),
}
PARADIGMS = {
    "minigpt4": Cell("MiniGPT-4", "minigpt4", "minigpt4"),
    "kosmos": Cell("Kosmos-1", "kosmos", "kosmos"),
    "llava": Cell("LLaVA", "llava-pretrain", "llava-instruct"),
    "mplug-owl": Cell("mPLUG-Owl", "pretrain", "instruct"),
}


def run_all(cells: list[tuple[Cell, int]], scale: float) -> None:
    """Trains and scores what is missing, a process for each core: cells of a seed that share a stage 1 are in one."""
    for seed in sorted({seed for _, seed in cells}):
        make(HOME / f"seed-{seed}/fresh", partial(build_fresh, seed=seed))
    groups = defaultdict(list)
    for cell, seed in cells:
        groups[seed, cell.first].append((cell, seed, scale))
    longest_first = sorted(groups.values(), key=len, reverse=True)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        list(pool.map(run_group, longest_first))


def run_group(cells: list[tuple[Cell, int, float]]) -> None:
    for cell, seed, scale in cells:
        run(cell, seed, scale)


def run(cell: Cell, seed: int, scale: float) -> dict[str, float]:
    """Trains a cell, or reads what an earlier run found: the share of right answers by ability."""
    names = f"{cell.first or 'fresh'}-{cell.second or 'none'}-{'-'.join(cell.groups) if cell.second else 'none'}"
    folder = HOME / f"seed-{seed}"
    result = folder / f"{names}.json"
    if not result.exists():
        start = time.monotonic()
        pretrain, instruct, count = (max(2, round(scale * n)) for n in (PRETRAIN_STEPS, INSTRUCT_STEPS, QUESTIONS))
        model = folder / "fresh"
        if cell.first:
            model = stage("pretrain", cell.first, model, folder / cell.first, pretrain, seed, ("captions",))
        tuned = model
        if cell.second:
            tuned = stage("instruct", cell.second, model, folder / names, instruct, seed, cell.groups)
        found = answer(load(model, tuned), count)
        note = {
            "cell": cell.title, "seed": seed, "command": f"python {' '.join(sys.argv)}", "pretrain_steps": pretrain,
            "instruct_steps": instruct, "rows": ROWS, "questions": count,
            "seconds_on_a_core": round(time.monotonic() - start), "right": found,
        }  # fmt: skip
        unfinished = result.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(note, indent=2) + "\n")
        unfinished.replace(result)
    return json.loads(result.read_text())["right"]


def answer(answerer: Answerer, count: int) -> dict[str, float]:
    """The share of right answers by ability, on new scenes in the styles of training."""
    here = world(*SPLITS["seen styles"])
    asked = {ability: list(questions(here, ability, count)) for group in GROUPS.values() for ability in group}
    return {ability: float(marks(answerer, of_it).mean()) for ability, of_it in asked.items()}


def stage(recipe: str, name: str, model: Path, output: Path, steps: int, seed: int, groups: tuple[str, ...]) -> Path:
    """Trains after a recipe of the miniature with other values; does nothing if that was done."""
    if not (output / "trainer_state.json").exists():
        file = HERE / f"{recipe}.yaml"
        data = yaml.safe_load(file.read_text())["data"]
        values = {
            "stage": name, "model": model, "output_dir": output, "max_steps": steps, "seed": seed,
            "global_batch_size": ROWS, "per_device_train_batch_size": ROWS, "bf16": bfloat16_is_fast(),
            "data": json.dumps({group: data[group] for group in groups}),
        }  # fmt: skip
        train(file, [word for key, value in values.items() for word in (f"--{key}", str(value))])
    return output


def load(base: Path, tuned: Path) -> Answerer:
    """The model of a cell; with LoRA it lies beside its base."""
    answerer = Answerer(str(base if (tuned / "adapter_config.json").exists() else tuned))
    if (tuned / "adapter_config.json").exists():
        answerer.model = PeftModel.from_pretrained(answerer.model, tuned).merge_and_unload()
    return answerer


def by_ability(found: dict[str, float]) -> list[float]:
    """Per cent in the paper's six abilities."""
    return [100 * float(np.mean([found[ability] for ability in group])) for group in GROUPS.values()]


def report(title: str, rows: dict[str, np.ndarray]) -> str:
    """A table of rows of (seeds, abilities), beside the paper's figures where it has some."""
    shown = Table("", *NEEDED, "mean", title=title)
    for name, values in rows.items():
        means = values.mean(0)
        spread = [f" ± {found:.1f}" if len(values) > 1 else "" for found in values.std(0)]
        shown.add_row(name, *(f"{m:.1f}{s}" for m, s in zip(means, spread, strict=True)), f"{means.mean():.1f}")
        if name in TABLE_2:
            paper = TABLE_2[name]
            shown.add_row("  the paper", *(f"{value:.1f}" for value in paper), f"{np.mean(paper):.1f}")
    console = Console(record=True, width=120)
    console.print(shown)
    return console.export_text()


def plot(rows: dict[str, np.ndarray], file: Path) -> None:
    """Bars of each row's abilities with the deviation over seeds, the paper's figures as marks, as PNG and SVG."""
    from matplotlib.figure import Figure

    figure = Figure((9, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(rows)
    for number, ((name, values), colour) in enumerate(zip(rows.items(), COLOURS, strict=True)):
        places = np.arange(len(NEEDED)) + (number - (len(rows) - 1) / 2) * width
        axes.bar(
            places, values.mean(0), width, yerr=values.std(0), label=name, color=colour, error_kw={"linewidth": 0.8}
        )
        if name in TABLE_2:
            label = "the paper" if number == 0 else None
            axes.plot(places, TABLE_2[name], "k_", markersize=9, label=label)
    names = [f"{name}\n{ABILITIES[name][0]}" for name in NEEDED]
    axes.set(xticks=range(len(NEEDED)), ylabel="right answers (%)", ylim=(0, 105))
    axes.set_xticks(range(len(NEEDED)), names, fontsize=8)
    figure.legend(loc="outside upper center", fontsize="small", ncols=len(rows) // 2 + 1)
    for suffix in ("png", "svg"):
        figure.savefig(file.with_suffix(f".{suffix}"), dpi=120)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Runs per row of Table 2.")] = 3,
    scale: Annotated[float, typer.Option(min=0.001, help="Factor for steps and questions.")] = 1.0,
) -> None:
    """Train and score every cell that is missing, then print both tables."""
    rows = [(cell, seed) for seed in range(seeds) for cell in TABLE.values()]
    run_all([*rows, *((cell, 0) for cell in PARADIGMS.values())], scale)
    table = {c.title: np.array([by_ability(run(c, seed, scale)) for seed in range(seeds)]) for c in TABLE.values()}
    paradigms = {c.title: np.array([by_ability(run(c, 0, scale))]) for c in PARADIGMS.values()}
    text = report("Table 2 in miniature", table) + "\n" + report("Figure 1 in miniature", paradigms)
    (HOME / "tables.txt").write_text(text)
    found = [json.loads(file.read_text()) for file in sorted(HOME.glob("seed-*/*-*.json"))]
    (HOME / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    plot(table, HOME / "ablation.png")


if __name__ == "__main__":
    typer.run(main)
