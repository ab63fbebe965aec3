"""Teaches the package's miniature to read pages, with and without cells, and counts the lines it reads right.

python -m research.miniature.pages

Both conditions start from the same weights and differ in `max_crops` alone: equal steps, rows and seeds. Everything
goes to build/pages; a run that was scored is not trained again. The recipe is research/miniature/pages.yaml.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import typer
from torchmetrics.functional.text import char_error_rate

from transformers_owl.training.train import train

from .data import messages, png, write_rows
from .make import HERE, make
from .parts import bfloat16_is_fast
from .scenes import FONTS, WORDS, font, pick
from .score import RESAMPLES, Answerer, Question
from .talk import Exchange


HOME = Path("build/pages")
BATCH = 32
COLOURS = ("#E69F00", "#0072B2")  # of Okabe and Ito, for every colour vision
CONDITIONS = {"whole view": 1, "cells": 6}  # their `max_crops`
KINDS = ("lines", "table", "receipt")
WIDTH, HEIGHT = 192, 288  # pixels
LINES, COLUMNS = 3, 2
LETTERS = 40  # largest size of the font, pixels
SHIFT = 3  # of an entry out of the middle of its box, pixels, at most
SHORT = tuple(word for word in WORDS if len(word) <= 4)
TRAINING, HELD_OUT = 31, 32  # seeds
ROWS = 8  # of a step
STEPS = 70
PAGES = 20  # of each kind, to read


@dataclass(frozen=True)
class Page:
    """An image of text of a kind of `KINDS`, and a question about each of its lines."""

    kind: str
    image: PIL.Image.Image
    exchanges: tuple[Exchange, ...]


def page(kind: str, random: np.random.Generator) -> Page:
    """Three lines of a word and a number, the same in a ruled table, or two prices and their sum."""
    words = [SHORT[place] for place in random.permutation(len(SHORT))[:LINES]]
    numbers = [int(number) for number in random.integers(10, 50 if kind == "receipt" else 100, LINES)]
    if kind == "receipt":
        words[-1], numbers[-1] = "sum", sum(numbers[:-1])
    lines = [f"{word} {number}" for word, number in zip(words, numbers, strict=True)]
    exchanges = tuple(Exchange(kind, f"Read line {place}.", line) for place, line in enumerate(lines, 1))
    return Page(kind, draw(kind, [line.split() for line in lines], random), exchanges)


def draw(kind: str, rows: list[list[str]], random: np.random.Generator) -> PIL.Image.Image:
    """Dark writing on light paper."""
    image = PIL.Image.new("RGB", (WIDTH, HEIGHT), tuple(int(level) for level in random.integers(225, 256, 3)))
    pen = PIL.ImageDraw.Draw(image)
    ink = tuple(int(level) for level in random.integers(0, 60, 3))
    name = pick(random, FONTS)
    tall, wide = HEIGHT / LINES, WIDTH / COLUMNS
    for row, entries in enumerate(rows):
        y = (row + 0.5) * tall + random.uniform(-SHIFT, SHIFT)
        for column, entry in enumerate(entries):
            x = (column + 0.5) * wide + random.uniform(-SHIFT, SHIFT)
            size = min(LETTERS, math.floor(LETTERS * 0.92 * wide / font(name, LETTERS).getlength(entry)))
            pen.text((x, y), entry, fill=ink, font=font(name, size), anchor="mm")
        if row and (kind == "table" or (kind == "receipt" and row == LINES - 1)):
            pen.line((4, row * tall, WIDTH - 4, row * tall), fill=ink, width=2)
    return image


def pages(count: int, seed: int) -> Iterator[Page]:
    """Pages of all kinds in turn, each from a seed of its own."""
    for number in range(count):
        yield page(KINDS[number % len(KINDS)], np.random.default_rng([seed, number]))


def write_data(folder: Path, count: int) -> None:
    """`train.jsonl`: conversations of a question on every line, in any order, and the images beside it."""
    rows = []
    for number, shown in enumerate(pages(count, TRAINING)):
        (folder / f"{number}.png").write_bytes(png(shown.image))
        order = np.random.default_rng([TRAINING, number, 1]).permutation(LINES)
        rows.append(messages([f"{number}.png"], [shown.exchanges[place] for place in order]))
    write_rows(folder / "train.jsonl", iter(rows))


def run(condition: str, seed: int, steps: int, count: int) -> dict[str, Any]:
    """Trains and scores a condition, or reads what an earlier run found."""
    folder = HOME / f"{condition.replace(' ', '-')}-{seed}"
    result = folder / "result.json"
    if not result.exists():
        make(HOME / "data", lambda to: write_data(to, steps * ROWS))
        start = time.monotonic()
        source = {"format": "messages", "path": str(HOME / "data/train.jsonl")}
        values = {
            "max_crops": CONDITIONS[condition], "seed": seed, "max_steps": steps, "output_dir": folder,
            "bf16": bfloat16_is_fast(), "data": json.dumps({"pages": {"sources": [source]}}),
        }  # fmt: skip
        train(HERE / "pages.yaml", [str(word) for name, value in values.items() for word in (f"--{name}", value)])
        trained = round(time.monotonic() - start)
        shown = list(pages(count * len(KINDS), HELD_OUT))
        note = {
            "condition": condition, "seed": seed, "command": f"python {' '.join(sys.argv)}", "steps": steps,
            "rows": ROWS, "seconds_of_training": trained, **score(Answerer(str(folder)), shown),
        }  # fmt: skip
        unfinished = result.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(note, indent=1) + "\n")
        unfinished.replace(result)
    return json.loads(result.read_text())


def score(answerer: Answerer, shown: list[Page]) -> dict[str, list]:
    """
    What a model reads on pages: kinds, expected lines and answers by page, marks by page and line of exact answers,
    the same against the next page of the kind (`control`), and the share of characters that are wrong.
    """
    asked = [Question([each.image], [], exchange) for each in shown for exchange in each.exchanges]
    answers = [answer for first in range(0, len(asked), BATCH) for answer in answerer(asked[first : first + BATCH])]
    expected = [[exchange.answer for exchange in each.exchanges] for each in shown]
    others = expected[len(KINDS) :] + expected[: len(KINDS)]
    found = [answers[first : first + LINES] for first in range(0, len(answers), LINES)]
    return {
        "kinds": [each.kind for each in shown], "expected": expected, "answers": found,
        "right": compare(found, expected), "control": compare(found, others),
        "wrong_characters": [float(char_error_rate(*each)) for each in zip(found, expected, strict=True)],
    }  # fmt: skip


def compare(found: list[list[str]], expected: list[list[str]]) -> list[list[bool]]:
    return [[a == b for a, b in zip(*each, strict=True)] for each in zip(found, expected, strict=True)]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of values (seeds, pages), and its 95 % interval by a bootstrap over seeds and pages."""
    random = np.random.default_rng(0)
    seeds, shown = values.shape
    means = [
        values[random.integers(seeds, size=seeds)][:, random.integers(shown, size=shown)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def summary(results: dict[str, list[dict]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By condition: the share of lines read right, of all kinds and of each, its control, and wrong characters."""
    rows = {}
    for condition, runs in results.items():
        right, control, wrong = (
            np.array([np.reshape(each[name], (len(each["kinds"]), -1)).mean(1) for each in runs], float)
            for name in ("right", "control", "wrong_characters")
        )
        kinds = np.array(runs[0]["kinds"])
        rows[condition] = {
            "all": interval(right), **{kind: interval(right[:, kinds == kind]) for kind in KINDS},
            "control": interval(control), "wrong characters": interval(wrong),
        }  # fmt: skip
    return rows


def report(rows: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """The summary as a Markdown table, in per cent, with intervals in brackets."""
    names = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for condition, row in rows.items():
        cells = [f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for mean, low, high in row.values()]
        lines.append(f"| {condition} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: dict[str, dict[str, tuple[float, float, float]]], file: Path) -> None:
    """Bars of the lines read right, with their intervals, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure((7, 3.2), layout="constrained")
    axes = figure.subplots()
    names = ("all", *KINDS, "control")
    for number, ((condition, row), colour) in enumerate(zip(rows.items(), COLOURS, strict=True)):
        means, lows, highs = 100 * np.array([row[name] for name in names]).T
        places = np.arange(len(names)) + 0.4 * (number - 0.5)
        axes.bar(places, means, 0.38, yerr=(means - lows, highs - means), capsize=3, color=colour, label=condition)
    axes.set(ylabel="lines read right (%)", ylim=(0, 105))
    axes.set_xticks(range(len(names)), names)
    figure.legend(loc="outside upper center", ncols=len(rows))
    figure.savefig(file)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Runs per condition.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help=f"Training steps per run, of {ROWS} pages each.")] = STEPS,
    count: Annotated[int, typer.Option("--pages", min=2, help="Held-out pages per kind.")] = PAGES,
) -> None:
    """Train and score what is missing, then print the table and write the figure."""
    cells = [(seed, name) for seed in range(seeds) for name in CONDITIONS]
    found = [(name, run(name, seed, steps, count)) for seed, name in cells]
    results = {name: [each for of, each in found if of == name] for name in CONDITIONS}
    rows = summary(results)
    (HOME / "pages.json").write_text(json.dumps({"rows": rows, "runs": results}, indent=1) + "\n")
    plot(rows, HOME / "pages.svg")
    print(report(rows))


if __name__ == "__main__":
    typer.run(main)
