"""Draws the scenes of the package's demo/pictures and the clips of examples/videos; none of them is in training.

python -m research.miniature.samples
"""

from pathlib import Path

import numpy as np
import typer

from .drawings import Drawings
from .events import clip, mp4
from .scenes import FONTS, SIZE, World, draw


ROOT = Path(__file__).parents[2]
IMAGES, VIDEOS = ROOT / "src/transformers_owl/demo/pictures", ROOT / "examples/videos"
STYLES = ("noto", "fluent-flat", "fluent-3d")  # under the MIT and Apache licences
SAMPLES = 31  # the first number of a seed: training, conversations and score have others
# By name: the kind of the scene, and the second number of its seed.
SCENES = {
    "castle-and-octopus": ("two", 8), "elephant": ("one", 5), "helicopters": ("many", 3), "number": ("writing", 6),
    "sunflower": ("one", 2),
}  # fmt: skip

# The same of clips.
CLIPS = {
    "elephant-appears": ("appear", 5), "elephant-moves": ("move", 5), "strawberry-turns": ("change", 3),
    "sunflower-jumps": ("jump", 2),
}  # fmt: skip


def main() -> None:
    """Draw the sample images and clips, twice as large as the model sees them."""
    world = World(Drawings(STYLES, 2 * SIZE), shown=True, fonts=FONTS)
    for name, (kind, number) in SCENES.items():
        scene = world.scene(np.random.default_rng([SAMPLES, number]), kind)
        draw(scene, world.drawings, 2 * SIZE).save(IMAGES / f"{name}.png", optimize=True)
    for name, (kind, number) in CLIPS.items():
        shown = clip(world, np.random.default_rng([SAMPLES, number]), kind)
        (VIDEOS / f"{name}.mp4").write_bytes(mp4(shown.frames(world.drawings, 2 * SIZE)))


if __name__ == "__main__":
    typer.run(main)
