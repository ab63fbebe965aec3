"""Drawings of objects in several styles, as images with transparency."""

import csv
import functools
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image

from .packages import CACHE, PACKAGES, fetch, members


STYLES = ("noto", "noto-v1", "fluent-flat", "fluent-3d", "fxemoji", "emojione")
HELD_OUT_STYLE = "twemoji"
FOREIGN_STYLE = "openmoji"  # its licence asks that nothing derived from it is shipped: it is fetched for evaluation
LANGUAGES = ("de", "fr", "es", "zh")
# What a style without Unicode names calls an object; by default it is Noto's name, without hyphens for fxemoji.
OTHER_NAMES = {
    ("fxemoji", "camel"): "bactriancamel", ("fxemoji", "pizza"): "sliceofpizza", ("fxemoji", "shirt"): "mansshirt",
    ("fxemoji", "castle"): "europeancastle", ("fxemoji", "house"): "housebuilding",
    ("fxemoji", "scissors"): "blackscissors", ("fxemoji", "telephone"): "telephonereceiver2",
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """An object: its name in English and in `LANGUAGES`, its kind, its code point, and whether images show it."""

    name: str
    kind: str
    code: str
    shown: bool
    names: dict[str, str] = field(hash=False)


@functools.cache
def things() -> tuple[Thing, ...]:
    with Path(__file__).with_name("objects.csv").open(encoding="utf-8") as file:
        return tuple(
            Thing(row["name"], row["kind"], row["code"], row["shown"] == "yes", {code: row[code] for code in LANGUAGES})
            for row in csv.DictReader(file)
        )


class Drawings:
    """
    The drawings of some styles.

    Args:
        styles (`tuple[str, ...]`): Names of `PACKAGES`.
        size (`int`): Edge of a drawing in pixels.
        cache (`Path`): Where packages and drawings are kept.

    `drawings[style, name]` is an RGBA image; not every style has every object.
    """

    def __init__(self, styles: tuple[str, ...] = STYLES, size: int = 96, cache: Path = CACHE):
        self.images: dict[tuple[str, str], PIL.Image.Image] = {}
        for style in styles:
            for name, pixels in load(style, size, cache).items():
                self.images[style, name] = PIL.Image.fromarray(pixels)
        self.styles = {
            thing.name: tuple(style for style in styles if (style, thing.name) in self.images) for thing in things()
        }

    def __getitem__(self, key: tuple[str, str]) -> PIL.Image.Image:
        return self.images[key]


def load(style: str, size: int, cache: Path) -> dict[str, np.ndarray]:
    """The drawings of a style by name, `(size, size, 4)` each, from the cache if they are there."""
    package = PACKAGES[style]
    file = cache / f"{Path(package.name).stem}-{size}.npz"
    if not file.exists():
        source = fetch(package, cache)
        drawn = draw_webp(source, size) if style == "fluent-3d" else draw_svg(style, source, size, cache)
        partial = file.with_name(f"partial-{file.name}")
        np.savez_compressed(partial, allow_pickle=False, **drawn)  # type: ignore[arg-type]
        partial.replace(file)
    with np.load(file) as drawings:
        return dict(drawings)


def draw_svg(style: str, source: Path, size: int, cache: Path) -> dict[str, np.ndarray]:
    """Drawings of an icon set in Iconify's JSON. Sets without a list of code points mostly follow Noto's names."""
    import resvg_py

    icons = json.loads(members(source, "package/icons.json").popitem()[1])
    own, noto = icon_names(source), icon_names(fetch(PACKAGES["noto"], cache))
    drawings = {}
    for thing in things():
        name = own.get(thing.code) or OTHER_NAMES.get((style, thing.name)) or noto[thing.code]
        candidates = (name, name.replace("-", ""), thing.name)
        icon = next((icons["icons"][name] for name in candidates if name in icons["icons"]), None)
        if icon is None:
            continue
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{size}" height="{size}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg)
        drawings[thing.name] = fit(PIL.Image.open(io.BytesIO(bytes(png))), size)
    return drawings


def icon_names(source: Path) -> dict[str, str]:
    """Code point -> icon, for sets that have such a list."""
    return json.loads(members(source, "package/chars.json").popitem()[1])


def draw_webp(source: Path, size: int) -> dict[str, np.ndarray]:
    files = {Path(name).stem.removesuffix("-fe0f"): data for name, data in members(source, ".webp").items()}
    return {thing.name: fit(PIL.Image.open(io.BytesIO(files[thing.code])), size) for thing in things()}


def fit(image: PIL.Image.Image, size: int) -> np.ndarray:
    """The drawing without its empty margins, in the middle of a square."""
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda level: 255 * (level > 16)).getbbox())
    scale = size / max(image.size)
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), PIL.Image.Resampling.LANCZOS
    )
    square = PIL.Image.new("RGBA", (size, size))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(square)
