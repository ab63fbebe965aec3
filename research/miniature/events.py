"""Short clips that are made up: one thing that moves, comes or goes, changes its colour, or jumps."""

import io
import itertools
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image

from .drawings import Drawings
from .scenes import DYES, SIZE, Item, Scene, World, draw, pick


MOMENTS = 6  # of a clip, each held for some frames of its file
HELD, FPS = 4, 24
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
JUMPS = ("once", "twice", "three times")


@dataclass(frozen=True)
class Clip:
    """
    What happens to one thing.

    Args:
        kind (`str`): A name of `EVENTS`.
        event (`str`): A way of `WAYS`, "appear" or "disappear", the colour at the end, or one of `JUMPS`.
        item ([`Item`]): The thing as it is at first.
        moments (`tuple[Scene, ...]`): What is seen, in order. No single one of them tells the event.
    """

    kind: str
    event: str
    item: Item
    moments: tuple[Scene, ...]

    @property
    def ground(self) -> str:
        return self.moments[0].ground

    def frames(self, drawings: Drawings, size: int = SIZE) -> list[PIL.Image.Image]:
        return [draw(scene, drawings, size) for scene in self.moments]


def clip(world: World, random: np.random.Generator, kind: str | None = None) -> Clip:
    """A clip at random, of the given kind or of any."""
    kind = kind or pick(random, tuple(EVENTS), SHARES)
    scene = world.scene(random, "one")
    size = random.uniform(0.36, 0.5)
    x, y = random.uniform(size / 2, 1 - size / 2, 2)
    item = replace(scene.items[0], x=x, y=y, size=size)
    event, items = EVENTS[kind](random, item, scene.ground)
    moments = tuple(replace(scene, items=() if item is None else (item,)) for item in items)
    return Clip(kind, event, next(item for item in items if item is not None), moments)


def move(random: np.random.Generator, item: Item, ground: str) -> tuple[str, list[Item | None]]:
    """All the same places are passed on the way back: the order alone tells the way."""
    way = pick(random, tuple(WAYS))
    length = random.uniform(0.3, 1 - item.size)
    first = random.uniform(item.size / 2, 1 - item.size / 2 - length)
    places = [float(place) for place in np.linspace(first, first + length, MOMENTS)[:: sum(WAYS[way])]]
    return way, [replace(item, x=place) if WAYS[way][0] else replace(item, y=place) for place in places]


def appear(random: np.random.Generator, item: Item, ground: str) -> tuple[str, list[Item | None]]:
    event = pick(random, ("appear", "disappear"))
    before = random.integers(2, MOMENTS - 1)
    seen = [(moment < before) == (event == "disappear") for moment in range(MOMENTS)]
    return event, [item if is_seen else None for is_seen in seen]


def change(random: np.random.Generator, item: Item, ground: str) -> tuple[str, list[Item | None]]:
    first, last = random.permutation([dye for dye in DYES if dye != ground])[:2]
    before = random.integers(2, MOMENTS - 1)
    dyes = [str(first)] * before + [str(last)] * (MOMENTS - before)
    return dyes[-1], [replace(item, dye=dye) for dye in dyes]


def jump(random: np.random.Generator, item: Item, ground: str) -> tuple[str, list[Item | None]]:
    """It is up in half of the moments, whatever the number of jumps."""
    jumps = random.integers(len(JUMPS))
    low, high = 1 - item.size / 2, item.size / 2
    heights = pick(random, [ups for ups in itertools.product((False, True), repeat=MOMENTS)
                            if sum(ups) == MOMENTS // 2 and sum(rises(ups)) == jumps + 1])  # fmt: skip
    return JUMPS[jumps], [replace(item, y=high if is_up else low) for is_up in heights]


def rises(ups: tuple[bool, ...]) -> list[bool]:
    return [now and not before for before, now in itertools.pairwise((False, *ups))]


EVENTS = {"move": move, "appear": appear, "change": change, "jump": jump}
SHARES = (0.4, 0.1, 0.1, 0.4)  # of these: where something is seen late is harder to tell than what is seen late


def mp4(frames: list[PIL.Image.Image]) -> bytes:
    """The file of a clip, every moment held for `HELD` frames."""
    import av

    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for _ in range(HELD):
                container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    return data.getvalue()
