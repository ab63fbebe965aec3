"""Whether a model looks at the thing that it is asked about, of two that lie side by side.

python -m research.miniature.attends
"""

from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from transformers_owl import MINIATURE
from transformers_owl.inference import Chat, image_attention

from .scenes import Item, draw, world
from .score import Answerer, interval


SEED = 22


def seen(patches: torch.Tensor, item: Item) -> float:
    """The share of the attention that lies on the round of a thing."""
    rows, columns = patches.shape
    x = (torch.arange(columns) + 0.5) / columns - item.x
    y = (torch.arange(rows) + 0.5) / rows - item.y
    return patches[torch.hypot(x[None], y[:, None]) < item.size / 2].sum().item()


def main(
    model: Annotated[str, typer.Option(help="Folder of a model.")] = MINIATURE,
    count: Annotated[int, typer.Option("--questions", min=1)] = 500,
) -> None:
    """Ask what is on one side of new scenes, and see on which thing more of the attention lies at the answer."""
    answerer, here = Answerer(model), world()
    asked, other = np.zeros(count), np.zeros(count)
    for number in track(range(count), "Looking", console=Console(stderr=True), transient=True):
        random = np.random.default_rng([SEED, number])
        scene = here.scene(random, "two")
        sides = {"left": (scene.left, scene.right), "right": (scene.right, scene.left)}
        side = ("left", "right")[number % 2]
        chat = Chat(answerer.model, answerer.processor)
        chat.ask(f"What is on the {side}?", [draw(scene, here.drawings)])
        (found,) = image_attention(answerer.model, answerer.processor, chat.messages)
        asked[number], other[number] = (seen(found.patches, item) for item in sides[side])
    more = (asked > other).astype(float)
    low, high = interval(more)
    print(f"More attention on the thing asked about: {more.mean():.1%} of {count} questions ({low:.1%} to {high:.1%})")
    print(f"Share of the attention on it: {asked.mean():.1%}; on the other thing: {other.mean():.1%}")


if __name__ == "__main__":
    typer.run(main)
