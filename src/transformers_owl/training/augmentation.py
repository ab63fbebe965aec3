"""The original's augmentation, by default without the flip, which mirrors text and swaps left and right."""

import math
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageOps

from ..mplug_owl.image_processing_mplug_owl import resize


ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Augmentation:
    """
    Crops a random part of an image, or the same part of all frames of a video.

    Args:
        crop (`tuple[float, float]`, defaults to `(0.5, 1.0)`): Smallest and largest share of the area, as in the
            original; (1, 1) keeps the image whole.
        flip (`bool`, defaults to `False`): Whether to mirror half of the images, as in the original.
    """

    crop: tuple[float, float] = (0.5, 1.0)
    flip: bool = False

    def __post_init__(self):
        least, largest = self.crop
        if not 0 < least <= largest <= 1:
            raise ValueError(
                f"`crop` is {self.crop}, but must be two shares of the area, 0 < smallest <= largest <= 1."
            )

    def __call__(
        self, frames: list[PIL.Image.Image], size: tuple[int, int] | None, resample: int, random: np.random.Generator
    ) -> list[PIL.Image.Image]:
        """Crops each image, and resizes it to `size` (width, height) by PIL's filter `resample` if given."""
        box = None if self.crop == (1, 1) else self.box(frames[0].width, frames[0].height, random)
        if size is None:
            resized = frames if box is None else [frame.crop(box) for frame in frames]
        else:
            resized = [resize(frame, size, resample, box) for frame in frames]
        is_mirrored = self.flip and random.random() < 0.5
        return [PIL.ImageOps.mirror(frame) for frame in resized] if is_mirrored else resized

    def box(self, width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        """
        Draws left, top, right and bottom of a crop with a uniform share of the area and a log-uniform aspect ratio
        between 3:4 and 4:3. If ten draws do not fit, it is the largest central crop with an allowed ratio.
        """
        for _ in range(10):
            area = width * height * random.uniform(*self.crop)
            ratio = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                left, top = int(random.integers(width - wide + 1)), int(random.integers(height - high + 1))
                return left, top, left + wide, top + high
        wide, high = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high
