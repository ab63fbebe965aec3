"""Scenes that are made up: what lies where on which ground, and the image of it."""

import colorsys
import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from .drawings import STYLES, Drawings, Thing, things


SIZE = 96  # what the model sees
# Hue in degrees, saturation, value; a drawing may be dyed in these ...
DYES = {
    "red": (0, 0.9, 0.9), "orange": (28, 0.95, 1.0), "yellow": (54, 0.9, 1.0), "green": (125, 0.75, 0.7),
    "blue": (222, 0.85, 0.95), "purple": (280, 0.75, 0.75), "pink": (330, 0.45, 1.0), "brown": (22, 0.75, 0.5),
}  # fmt: skip
# ... and lie on these.
GROUNDS = {
    "white": (0, 0.0, 1.0), "grey": (0, 0.0, 0.55), "black": (0, 0.0, 0.06), "red": (0, 0.85, 0.85),
    "yellow": (54, 0.75, 1.0), "green": (125, 0.6, 0.65), "blue": (215, 0.7, 0.9), "pink": (330, 0.35, 1.0),
}  # fmt: skip
WORDS = tuple(thing.name for thing in things() if len(thing.name) <= 6)
FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono-Bold.ttf", "STIXGeneralBol.ttf")
HELD_OUT_FONT = "DejaVuSerif-Bold.ttf"
SHARES = {"one": 0.26, "two": 0.36, "many": 0.16, "writing": 0.22}
MOST = 6  # things of a group
DYED = 0.3
TURN = 12  # at most, to either side, in degrees


@dataclass(frozen=True)
class Item:
    """A drawing in a scene: `x`, `y` its middle and `size` its edge, as shares of the image; `dye` may be empty."""

    thing: Thing
    style: str
    dye: str
    x: float
    y: float
    size: float
    angle: float
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """
    One thing, two side by side, a group of 1 to 6 of a kind, or writing (with or without a thing above it); or, close
    up, a thing or a piece of writing.
    """

    kind: str
    ground: str
    items: tuple[Item, ...] = ()
    writing: str = ""
    height: float = 0.42  # of the writing, as a share of the image's
    middle: tuple[float, float] = (0.5, 0.5)  # of the writing
    font: str = FONTS[0]
    shade: tuple[float, float, float] = (0.0, 1.0, 1.0)  # of the ground: turn of hue, factors of saturation and value
    pattern: str = "plain"

    @property
    def left(self) -> Item:
        return min(self.items, key=lambda item: item.x)

    @property
    def right(self) -> Item:
        return max(self.items, key=lambda item: item.x)

    def at(self, x: float, y: float) -> Item | None:
        """The item whose round holds a point."""
        return next((item for item in self.items if math.hypot(x - item.x, y - item.y) < item.size / 2), None)

    def sign_at(self, x: float, y: float, size: int = SIZE) -> int | None:
        """The place in the writing of the sign that a point lies on, in an image of that many pixels."""
        letters = lettering(self, size)
        if abs(y - self.middle[1]) * size > 0.4 * letters.size:
            return None
        start = self.middle[0] * size - letters.getlength(self.writing) / 2
        ends = (start + letters.getlength(self.writing[: place + 1]) for place in range(len(self.writing)))
        return next((place for place, end in enumerate(ends) if start <= x * size < end), None)


@dataclass(frozen=True)
class World:
    """
    What scenes are drawn from.

    Args:
        drawings ([`Drawings`]): Of the styles to use.
        shown (`bool`, *optional*): Whether it has the things that training shows, or those that it holds back; by
            default both.
        fonts (`tuple[str, ...]`): Of the writing.
        dyed (`float`): Share of things in another colour than their own.
    """

    drawings: Drawings
    shown: bool | None = None
    fonts: tuple[str, ...] = FONTS
    dyed: float = DYED
    things: tuple[Thing, ...] = field(init=False)

    def __post_init__(self):
        wanted = (True, False) if self.shown is None else (self.shown,)
        chosen = tuple(t for t in things() if t.shown in wanted and self.drawings.styles[t.name])
        object.__setattr__(self, "things", chosen)

    def scene(self, random: np.random.Generator, kind: str | None = None) -> Scene:
        """A scene at random, of the given kind or of one drawn after `SHARES`."""
        kind = kind or pick(random, tuple(SHARES), tuple(SHARES.values()))
        ground = pick(random, tuple(GROUNDS))
        return Scene(
            kind,
            ground,
            **LAYOUTS[kind](self, random, ground),
            font=pick(random, self.fonts),
            shade=(random.uniform(-6, 6), random.uniform(0.85, 1.0), random.uniform(0.9, 1.0)),
            pattern=pick(random, ("plain", "shaded", "stripes", "dots"), (0.4, 0.3, 0.15, 0.15)),
        )

    def item(self, random, ground: str, x: float, y: float, size: float, thing: Thing | None = None) -> Item:
        thing = thing or pick(random, self.things)
        dye = pick(random, tuple(d for d in DYES if d != ground)) if random.random() < self.dyed else ""
        style = pick(random, self.drawings.styles[thing.name])
        return Item(thing, style, dye, x, y, size, random.uniform(-TURN, TURN), random.random() < 0.5)


def one(world: World, random: np.random.Generator, ground: str) -> dict[str, Any]:
    size = random.uniform(0.45, 0.9)
    slack = (1 - size) / 2
    x, y = 0.5 + random.uniform(-slack, slack), 0.5 + random.uniform(-slack, slack)
    return {"items": (world.item(random, ground, x, y, size),)}


def two(world: World, random: np.random.Generator, ground: str) -> dict[str, Any]:
    chosen = random.permutation(len(world.things))[:2]
    items = []
    for thing, middle in zip(chosen, (0.26, 0.74), strict=True):
        x, y = middle + random.uniform(-0.03, 0.03), random.uniform(0.28, 0.72)
        items.append(world.item(random, ground, x, y, random.uniform(0.42, 0.5), world.things[thing]))
    return {"items": tuple(items)}


def many(world: World, random: np.random.Generator, ground: str) -> dict[str, Any]:
    """Copies of one item in cells of a grid of two rows and three columns."""
    cells = random.permutation(MOST)[: random.integers(1, MOST + 1)]
    first = world.item(random, ground, 0, 0, 0)
    items = []
    for cell in cells:
        x = (cell % 3 + 0.5) / 3 + random.uniform(-0.02, 0.02)
        y = (cell // 3 + 0.5) / 2 + random.uniform(-0.08, 0.08)
        size, angle = random.uniform(0.27, 0.32), random.uniform(-TURN, TURN)
        items.append(Item(first.thing, first.style, first.dye, x, y, size, angle, first.mirrored))
    return {"items": tuple(items)}


def writing(world: World, random: np.random.Generator, ground: str) -> dict[str, Any]:
    text = str(random.integers(100)) if random.random() < 0.5 else pick(random, WORDS)
    if random.random() < 0.6:
        return {"writing": text}
    item = world.item(random, ground, 0.5, 0.3, random.uniform(0.4, 0.55))
    return {"items": (item,), "writing": text, "height": 0.3, "middle": (0.5, 0.78)}


def close(world: World, random: np.random.Generator, ground: str) -> dict[str, Any]:
    """A thing, or up to three signs of a writing, as they would be in a part of another scene."""
    size = random.uniform(0.6, 1.0)
    slack = (1 - size) / 2
    place = 0.5 + random.uniform(-slack, slack), 0.5 + random.uniform(-slack, slack)
    if random.random() < 0.7:
        return {"items": (world.item(random, ground, *place, size),)}
    text = writing(world, random, ground)["writing"]
    first = random.integers(max(1, len(text) - 2))
    return {"writing": text[first : first + 3], "height": 0.85 * size, "middle": place}


LAYOUTS = {"one": one, "two": two, "many": many, "writing": writing, "close": close}


def pick(random: np.random.Generator, choices, weights=None):
    """One of the choices, evenly or by weight."""
    if weights is None:
        return choices[random.integers(len(choices))]
    return choices[np.searchsorted(np.cumsum(weights) / sum(weights), random.random(), side="right")]


def draw(scene: Scene, drawings: Drawings, size: int = SIZE) -> PIL.Image.Image:
    """The RGB image of a scene, `size` pixels wide and high."""
    image = draw_ground(scene, size)
    for item in scene.items:
        edge = max(1, round(item.size * size))
        stamp = drawings[item.style, item.thing.name]
        if item.mirrored:
            stamp = stamp.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        if item.dye:
            stamp = dyed(stamp, item.dye)
        stamp = stamp.resize((edge, edge), PIL.Image.Resampling.BICUBIC, reducing_gap=2.0)
        stamp = stamp.rotate(item.angle, PIL.Image.Resampling.BILINEAR, expand=True)
        corner = round(item.x * size - stamp.width / 2), round(item.y * size - stamp.height / 2)
        image.paste(stamp, corner, stamp)
    if scene.writing:
        draw_writing(image, scene)
    return image


def rgb(colour: tuple[float, float, float]) -> tuple[int, int, int]:
    hue, saturation, value = colour
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_ground(scene: Scene, size: int) -> PIL.Image.Image:
    turn, pale, dark = scene.shade
    hue, saturation, value = GROUNDS[scene.ground]
    colour = rgb((hue + turn, saturation * pale, value * dark))
    second = rgb((hue + turn, saturation * pale * 0.85, min(1.0, value * dark * 0.85 + 0.02)))
    image = PIL.Image.new("RGB", (size, size), colour)
    if scene.pattern == "shaded":
        return PIL.Image.composite(image, PIL.Image.new("RGB", (size, size), second), ramp(size))
    pen = PIL.ImageDraw.Draw(image)
    step = size / 8
    if scene.pattern == "stripes":
        for row in range(0, 8, 2):
            pen.rectangle((0, row * step, size, (row + 1) * step), fill=second)
    if scene.pattern == "dots":
        for row in range(8):
            for column in range(row % 2, 8, 2):
                x, y = (column + 0.5) * step, (row + 0.5) * step
                pen.ellipse((x - step / 4, y - step / 4, x + step / 4, y + step / 4), fill=second)
    return image


@functools.cache
def ramp(size: int) -> PIL.Image.Image:
    return PIL.Image.linear_gradient("L").resize((size, size))


def dyed(stamp: PIL.Image.Image, dye: str) -> PIL.Image.Image:
    """The drawing in shades of one colour, light where it was light."""
    levels = np.asarray(stamp.convert("L"), np.float32) / 255
    alpha = np.asarray(stamp.getchannel("A"))
    seen = levels[alpha > 128]
    low, high = (seen.min(), seen.max()) if seen.size else (0.0, 1.0)
    shade = 0.45 + 0.75 * (levels - low) / max(high - low, 0.2)
    pixels = np.clip(np.asarray(rgb(DYES[dye]), np.float32) * shade[..., None], 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(np.dstack([pixels, alpha]))


@functools.cache
def font(name: str, size: int) -> PIL.ImageFont.FreeTypeFont:
    import matplotlib

    return PIL.ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def lettering(scene: Scene, size: int) -> PIL.ImageFont.FreeTypeFont:
    """The font of the writing in an image of that many pixels; smaller where the image is too narrow for it."""
    height = math.floor(size * scene.height)
    letters = font(scene.font, height)
    room = 2 * (min(scene.middle[0], 1 - scene.middle[0]) - 0.04) * size
    width = letters.getlength(scene.writing)
    return letters if width <= room else font(scene.font, math.floor(height * room / width))


def draw_writing(image: PIL.Image.Image, scene: Scene) -> None:
    """Dark on a light ground, light on a dark one."""
    size, (x, y) = image.width, scene.middle
    letters = lettering(scene, size)
    ink = "black" if sum(rgb(GROUNDS[scene.ground])) > 330 else "white"
    PIL.ImageDraw.Draw(image).text((x * size, y * size), scene.writing, fill=ink, font=letters, anchor="mm")


def world(styles: tuple[str, ...] = STYLES, shown: bool | None = True, size: int = SIZE, **options) -> World:
    """A world of some styles; `size` is the edge of its drawings."""
    return World(Drawings(styles, size, **options), shown, FONTS if styles == STYLES else (HELD_OUT_FONT,))
