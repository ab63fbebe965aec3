"""The vision model of an Owl learns what happens in clips, beside what it knows of images."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import AutoProcessor, set_seed

from transformers_owl import MplugOwlForConditionalGeneration

from .events import JUMPS, MOMENTS, WAYS, clip
from .parts import (
    OF_IMAGE,
    OF_PATCH,
    PATCH,
    WordPredictor,
    fit,
    numbers,
    settings,
    words_of_image,
    words_of_patch,
)
from .scenes import SIZE, Scene, World, draw


ROWS = 16  # of a step, each of `MOMENTS` images
SIDE = SIZE // PATCH
TURN = "turn"
WHEN = ("before", "now", "after")
# Patches that show a thing tell what happens to it; all of them, where it is, was and will be. Asked for the event
# alone the vision model does not learn it: with the places the way of a thing is a difference.
OF_PATCH_OVER_TIME: dict[str, tuple] = {
    **OF_PATCH,
    "event": (*WAYS, "appear", "disappear", TURN, *JUMPS),
    **{f"{axis} {when}": tuple(range(SIDE)) for when in WHEN for axis in ("column", "row")},
}


@dataclass(frozen=True)
class Lesson:
    """
    What the vision model is shown for some of its steps.

    Args:
        name (`str`): Name of its folder of checkpoints.
        images (`int`): One row of so many has images in place of a clip.
        known (`float`): Weight of the words that images have taught it.
        share (`float`): Share of all steps.
        schedule (`str`): Schedule of the learning rate.
    """

    name: str
    images: int
    known: float
    share: float
    schedule: str


# First what is new, then that and what it has half forgotten.
LESSONS = (
    Lesson("new", 4, 0.2, 0.6, "constant_with_warmup"),
    Lesson("all", 2, 1.0, 0.4, "cosine"),
)


class Watched(IterableDataset):
    """
    Clips, and among them rows of as many images of scenes of their own: `images` of shape
    `(MOMENTS, SIZE, SIZE, 3)`, `is_clip`, and as numbers the words `of_image` and `of_patches` of each.
    """

    def __init__(self, world: World, lesson: Lesson, seed: tuple[int, ...]):
        self.world, self.lesson, self.seed = world, lesson, seed

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for place in itertools.count():
            random = np.random.default_rng([*self.seed, first + step * place])
            is_clip = place % self.lesson.images > 0
            event: dict[str, Any] = {}
            around: list[tuple[Scene | None, Scene, Scene | None]]
            if is_clip:
                shown = clip(self.world, random)
                scenes = shown.moments
                around = [*zip((None, *scenes[:-1]), scenes, (*scenes[1:], None), strict=True)]
                event = {"event": TURN if shown.kind == "change" else shown.event}
            else:
                scenes = tuple(self.world.scene(random) for _ in range(MOMENTS))
                around = [(None, scene, None) for scene in scenes]
            yield {
                "images": np.stack([np.array(draw(scene, self.world.drawings)) for scene in scenes]),
                "is_clip": is_clip,
                "of_image": np.array([numbers(OF_IMAGE, words_of_image(scene)) for scene in scenes]),
                "of_patches": np.array([words_of_patches(three, event) for three in around]),
            }


def words_of_patches(around: tuple[Scene | None, ...], event: dict[str, Any]) -> list[list[int]]:
    """Of all patches of an image, row by row, given the moments of `WHEN`."""
    scene: Any = around[1]
    places = {
        f"{axis} {when}": int(SIDE * place)
        for when, moment in zip(WHEN, around, strict=True) if moment is not None and len(moment.items) == 1
        for axis, place in (("column", moment.items[0].x), ("row", moment.items[0].y))
    }  # fmt: skip
    middles = [(place + 0.5) / SIDE for place in range(SIDE)]
    return [
        numbers(OF_PATCH_OVER_TIME, words | places | (event if "name" in words else {}))
        for y in middles for column, x in enumerate(middles)
        for words in [words_of_patch(scene, x, y, column)]
    ]  # fmt: skip


class ClipWords(WordPredictor):
    """The vision model of an Owl, and what it says of images and of the moments of clips."""

    known = 1.0

    def forward(self, images: torch.Tensor, is_clip: torch.Tensor, of_image: torch.Tensor, of_patches: torch.Tensor):
        pixels = self.pixels(images)
        tokens = torch.cat([
            self.vision(pixels[is_clip]).last_hidden_state.flatten(0, 1),
            self.vision(pixels[~is_clip].flatten(0, 1)).last_hidden_state,
        ])  # fmt: skip
        patches = tokens[:, 1:]
        order = torch.cat([is_clip.nonzero(), (~is_clip).nonzero()]).flatten()
        summary = torch.cat([tokens[:, 0], patches.mean(1)], 1)
        given = of_image[order].flatten(0, 1), of_patches[order].flatten(0, 1)
        losses, logits = self.predict(patches, summary, *given)
        known, new = losses.split([len(OF_IMAGE) + len(OF_PATCH), len(OF_PATCH_OVER_TIME) - len(OF_PATCH)])
        return {"loss": self.known * known.sum() + new.sum(), "logits": logits}


def train_on_clips(world: World, owl: Path, scratch: Path, folder: Path, steps: int, seed: int) -> None:
    """The Owl with a vision model that knows what happens in clips."""
    set_seed(0)
    model: Any = MplugOwlForConditionalGeneration.from_pretrained(owl)
    processor = AutoProcessor.from_pretrained(owl)
    predictor = ClipWords(model.model.vision_model, processor.image_processor, OF_PATCH_OVER_TIME)
    layers = {name: value for name, value in predictor.vision.named_parameters() if "temporal" not in name}
    new = [value for name, value in predictor.named_parameters() if name.removeprefix("vision.") not in layers]
    for number, lesson in enumerate(LESSONS, 9):
        args = settings(
            scratch / lesson.name, max_steps=max(1, round(lesson.share * steps)), per_device_train_batch_size=ROWS,
            warmup_steps=20, lr_scheduler_type=lesson.schedule,
        )  # fmt: skip
        groups = [{"params": new, "lr": 2e-3}, {"params": [*layers.values()], "lr": 5e-4}]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, args.adam_beta2), weight_decay=0.05)
        predictor.known = lesson.known
        fit(predictor, Watched(world, lesson, (number, seed)), args, optimizer=optimizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
