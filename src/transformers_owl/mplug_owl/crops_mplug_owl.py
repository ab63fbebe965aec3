# SPDX-License-Identifier: Apache-2.0
"""Whole pages (UReader, arXiv 2310.05126): the grid of cells that an image is also cut into, and how cells are told
apart.
"""

import PIL.Image
import torch
from torch import nn

from .library_mplug_owl import torch_compilable_check


WHOLE = (0, 0)  # the crop position of a view of the whole image
Views = dict[tuple[int, int], PIL.Image.Image]  # by crop position


def choose_grid(image: tuple[int, int], view: tuple[int, int], max_crops: int) -> tuple[int, int]:
    """
    Rows and columns of the cells of an image: of all grids with at most `max_crops` cells the one that agrees best with
    the image in its size and in its shape (UReader, arXiv 2310.05126, section 3.1), of equally good ones that with
    fewer cells. (1, 1) says that the view of the whole is enough, as it is for an image no larger than a view.

    Each agreement is the share that two rectangles with a common corner have in common: the image and the grid's views
    in pixels, and both of them scaled to one width.

    Args:
        image, view (`tuple[int, int]`): Width and height in pixels.
        max_crops (`int`): Maximum number of cells.
    """
    (width, height), (wide, high) = image, view
    if width <= wide and height <= high:
        return 1, 1

    def agreement(grid: tuple[int, int]) -> tuple[float, int]:
        rows, columns = grid
        common = min(width, columns * wide) * min(height, rows * high)
        size = common / (width * height + rows * high * columns * wide - common)
        heights = height * columns * wide, rows * high * width
        return size + min(heights) / max(heights), -rows * columns

    grids = [(rows, columns) for rows in range(1, max_crops + 1) for columns in range(1, max_crops // rows + 1)]
    return max(grids, key=agreement)


def cut(whole: PIL.Image.Image, grid: tuple[int, int]) -> Views:
    """The cells of an image whose sides are multiples of the grid's rows and columns."""
    rows, columns = grid
    width, height = whole.width // columns, whole.height // rows
    return {
        (row + 1, column + 1): whole.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        for row in range(rows)
        for column in range(columns)
    }


class MplugOwlCropEmbedding(nn.Embedding):
    """The row or column (N,) of a cell in its image, from 1, or 0 for the whole image, to (N, D)."""


def check_crops(views: int, crop_positions: torch.Tensor | None, largest: int) -> None:
    """Raises a ValueError unless the cells of an image have their rows and columns, of at most `largest`."""
    if crop_positions is None and largest > 1:
        raise ValueError(
            f"This model takes up to {largest} crops per image, but no crop_positions were given: pass everything "
            "that MplugOwlProcessor returns, with `max_crops` of its image processor above 1. For whole images, "
            "pass zeros of shape (images, 2)."
        )
    if crop_positions is not None and largest == 1:
        raise ValueError(
            "crop_positions were given, but this model takes whole images only: set `max_crops` of the image "
            "processor to 1, or load the model with `max_crops` above 1 in its `visual_abstractor_config`."
        )
    if crop_positions is not None and crop_positions.shape != (views, 2):
        raise ValueError(f"crop_positions have shape {tuple(crop_positions.shape)}, but must have shape {(views, 2)}.")
    if crop_positions is not None:
        torch_compilable_check(
            ((crop_positions >= 0) & (crop_positions <= largest)).all(),
            f"crop_positions are beyond the model's max_crops of {largest}: lower `max_crops` of the image "
            f"processor to {largest}.",
        )
