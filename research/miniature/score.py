"""Asks a model about new scenes and clips, and counts the exact answers.

The control: the same questions with other images; of clips, with their own frames in another order.

python -m research.miniature.score build/miniature/miniature-owl --output build/miniature/score.json
"""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL.Image
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats
from transformers import AutoModelForImageTextToText, AutoProcessor

import transformers_owl  # noqa: F401  (registers the Auto classes)

from .drawings import FOREIGN_STYLE, HELD_OUT_STYLE, STYLES
from .events import clip
from .scenes import World, draw, world
from .talk import Exchange, about, about_clip, about_pair, text_only


SEED = 21
RESAMPLES = 2_000
BATCH = 64
# Split: styles, and whether the things are those of training.
SPLITS: dict[str, tuple[tuple[str, ...], bool]] = {
    "seen styles": (STYLES, True),
    "held-out style": ((HELD_OUT_STYLE,), True),
    "foreign style": ((FOREIGN_STYLE,), True),
    "things never shown": (STYLES, False),
}
SINGLE = (
    "caption", "name", "kind", "colour", "background", "count", "yes/no", "left/right", "digits", "words", "facts",
    "format", "languages", "verse", "second turn",
)  # fmt: skip
CLIP = {"movement": "move", "coming and going": "appear", "change": "change", "jumps": "jump", "clip caption": None}
ASKED = (*SINGLE, "two pictures", "text only", *CLIP)


@dataclass
class Question:
    """
    A question about some images, or about a clip of such frames, after earlier questions of the same dialogue, if
    there are any.
    """

    images: list[PIL.Image.Image]
    before: list[str]
    exchange: Exchange
    is_clip: bool = False

    def shown(self) -> list[dict[str, Any]]:
        if self.is_clip:
            return [{"type": "video", "video": self.images}]
        return [{"type": "image", "image": image} for image in self.images]


class Answerer:
    """A model and its processor. Answers have no spaces around them."""

    def __init__(self, folder: str, device: str = "cpu", dtype: torch.dtype | str = torch.float32):
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, device_map=device)
        self.processor = AutoProcessor.from_pretrained(folder)

    def __call__(self, questions: list[Question]) -> list[str]:
        """The answers to the last questions, given the model's own answers to those before."""
        chats: list[list[dict]] = [[] for _ in questions]
        for turn in range(max(len(question.before) for question in questions) + 1):
            for chat, question in zip(chats, questions, strict=True):
                asked = [*question.before, question.exchange.question]
                seen = question.shown() if turn == 0 else []
                chat.append({"role": "user", "content": [*seen, {"type": "text", "text": asked[turn]}]})
            answers = self.answer(chats)
            for chat, answer in zip(chats, answers, strict=True):
                chat.append({"role": "assistant", "content": answer})
        return answers

    def answer(self, chats: list[list[dict]]) -> list[str]:
        inputs = self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        written = self.model.generate(**inputs, max_new_tokens=48)[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(written, skip_special_tokens=True)]


def questions(here: World, ability: str, count: int, seed: int = SEED) -> Iterator[Question]:
    """Questions on an ability, each about a scene of its own."""
    number = found = 0
    while found < count:
        random = np.random.default_rng([seed, ASKED.index(ability), number])
        number += 1
        for question in ask(here, ability, random):
            yield question
            found += 1


def ask(here: World, ability: str, random: np.random.Generator) -> list[Question]:
    """One question, or none if the scene that came up does not allow it."""
    if ability == "text only":
        return [Question([], [], text_only(random)[0])]
    if ability == "two pictures":
        scenes, found = about_pair(here, random)
        return [Question([draw(scene, here.drawings) for scene in scenes], [], found[random.integers(len(found))])]
    if ability in CLIP:
        shown = clip(here, random, CLIP[ability])
        exchange = next(e for e in about_clip(shown, random) if e.ability == ability)
        return [Question(shown.frames(here.drawings), [], exchange, is_clip=True)]
    scene = here.scene(random)
    exchanges = about(scene, random)
    if ability == "second turn":
        candidates = [([e.question], e.follow_up) for e in exchanges if e.follow_up is not None]
    else:
        candidates = [([], e) for e in exchanges if e.ability == ability]
    if not candidates:
        return []
    before, exchange = candidates[random.integers(len(candidates))]
    return [Question([draw(scene, here.drawings)], before, exchange)]


def score(answerer: Answerer, split: str, abilities: tuple[str, ...], count: int) -> dict[str, dict]:
    """By ability: questions, share of right answers, its 95 % interval, and the same with other questions' images."""
    styles, shown = SPLITS[split]
    here = world(styles, shown)
    results = {}
    for ability in track(abilities, split, console=Console(stderr=True), transient=True):
        asked = list(questions(here, ability, count))
        right = marks(answerer, asked)
        control = right if ability == "text only" else marks(answerer, shuffled(asked))
        low, high = interval(right)
        results[ability] = {
            "questions": len(asked), "right": right.mean(), "low": low, "high": high, "control": control.mean(),
        }  # fmt: skip
    return results


def shuffled(asked: list[Question]) -> list[Question]:
    """The questions with what says nothing about their answers: other images, or frames in another order."""
    random = np.random.default_rng(SEED)
    others = (question.images for question in [*asked[1:], asked[0]])
    return [
        replace(question, images=[question.images[place] for place in random.permutation(len(question.images))])
        if question.is_clip else replace(question, images=other)
        for question, other in zip(asked, others, strict=True)
    ]  # fmt: skip


def marks(answerer: Answerer, asked: list[Question]) -> np.ndarray:
    found = []
    for first in range(0, len(asked), BATCH):
        batch = asked[first : first + BATCH]
        answers = answerer(batch)
        found += [question.exchange.is_met_by(answer) for question, answer in zip(batch, answers, strict=True)]
    return np.array(found, float)


def interval(right: np.ndarray) -> tuple[float, float]:
    """The bootstrap's 95 % interval of the mean."""
    found = stats.bootstrap((right,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0).confidence_interval
    return float(found.low), float(found.high)


def table(split: str, results: dict[str, dict]) -> Table:
    shown = Table("ability", "questions", "right", "95 % interval", "control", title=split)
    for ability, row in results.items():
        control = "" if ability == "text only" else f"{row['control']:.1%}"
        shown.add_row(
            ability, str(row["questions"]), f"{row['right']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}", control
        )
    return shown


def main(
    model: Annotated[str, typer.Argument(help="Folder of a model.")],
    split: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SPLITS)} (default: all).")] = None,
    ability: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(ASKED)} (default: all).")] = None,
    count: Annotated[int, typer.Option("--questions", min=1, help="Questions per ability.")] = 500,
    output: Annotated[Path | None, typer.Option(help="JSON file, written after each split.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
) -> None:
    """Score a model of the miniature's world."""
    answerer = Answerer(model, device)
    command, results = shlex.join(["python", *sys.argv]), {}
    for name in split or SPLITS:
        results[name] = score(answerer, name, tuple(ability or ASKED), count)
        Console().print(table(name, results[name]))
        if output is not None:
            partial = output.with_name(f"{output.name}.partial")
            partial.write_text(json.dumps({"command": command, "questions": count, "splits": results}, indent=2) + "\n")
            partial.replace(output)


if __name__ == "__main__":
    typer.run(main)
