# SPDX-License-Identifier: Apache-2.0
"""Images to pixels, as the original prepared them: RGB, straight to a square by PIL's bicubic filter, CLIP's mean and
standard deviation. Always PIL, also where torchvision is installed: its resize gives other pixels.
"""

import base64
import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

from .configuration_mplug_owl import check_max_crops, expect
from .crops_mplug_owl import WHOLE, Views, choose_grid, cut
from .download_mplug_owl import download
from .library_mplug_owl import PilBackend


# What Pillow raises for files that are damaged, cut off, too large to decode, or no images: each format its own.
UNREADABLE = (
    OSError, SyntaxError, EOFError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError, RuntimeError,
    MemoryError, struct.error, zlib.error, PIL.Image.DecompressionBombError,
)  # fmt: skip
LARGEST = 4096  # pixels of a side
MAX_PIXELS = 2**26  # of an image file, by default
MOST_AT_ONCE = 6  # times as many for all the images of a call
MOST_SCANS = 20  # of a progressive JPEG with `MAX_PIXELS`, more of smaller ones
# Formats of Pillow that are unsafe for files from strangers.
REFUSED = {
    "EPS": "are programs, which are not run",
    "IPTC": "embed a file of any format",
    "BLP": "embed a file that may be larger than declared",
}
HEAVY = {"WEBP": 2, "JPEG2000": 2, "AVIF": 2}  # formats whose decoders hold more copies: their pixels count so often
STRIP = 2**20  # pixels that are converted at once
SHORTEST = 48  # characters of an image as base64
BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")  # a file's name has a dot


class MplugOwlImageProcessor(PilBackend):
    r"""
    Prepares images for mPLUG-Owl. The aspect ratio is not kept, and no part of an image is left out.

    Args:
        size (`dict`, defaults to `{"height": 224, "width": 224}`): Pixels of the prepared images.
        resample (`int`, defaults to bicubic): PIL's filter.
        image_mean, image_std (`list[float]`): Mean and standard deviation per channel; CLIP's by default.
        max_pixels (`int`, defaults to 67,108,864): Maximum number of pixels of an image file; a call takes six times as
            many. A larger JPEG is decoded at a half, quarter or eighth of its sides; other files are refused before
            they are decoded. For WebP, JPEG 2000 and AVIF the limit is half, since their decoders need more memory.
        max_crops (`int`, defaults to 1): Maximum number of cells that an image larger than `size` is also cut into, see
            [`choose_grid`]; at most that of the model's abstractor.

    Calling it with images (PIL images, arrays of height x width x 3 or 3 x height x width, paths, URLs, base64, bytes
    of files, or lists of them) gives `pixel_values` (images, 3, height, width). An image is taken as a viewer shows
    it: rotated by its EXIF data, transparency on white, the first frame of an animation.

    Where `max_crops` is above 1, `pixel_values` (views, 3, height, width) holds for each image a view of the whole and
    then its cells, if it has any, row by row; `crop_positions` (views, 2) says which is which: 0, 0 of a whole image,
    else the cell's row and column, counted from 1.

    Raises:
        ValueError: for images that cannot be read or are too large, for other types, and for `None` and empty lists.
    """

    max_pixels = MAX_PIXELS
    max_crops = 1
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Reads the settings of a folder; an original release has its `image_size` in the model's configuration."""
        settings, remaining = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        return release_settings(settings, pretrained_model_name_or_path, cls.size, kwargs), remaining

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        check_max_crops(self.max_crops)
        for name, only in {"do_center_crop": False, "do_pad": False, "do_convert_rgb": True}.items():
            if kwargs.get(name) not in (None, only):
                raise ValueError(f"`{name}` is {kwargs[name]}, but mPLUG-Owl takes whole RGB images: leave it out.")

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "crop_positions"] if self.max_crops > 1 else ["pixel_values"]

    def preprocess(
        self, images, do_resize=None, size=None, resample=None, do_rescale=None, rescale_factor=None, do_normalize=None,
        image_mean=None, image_std=None, do_convert_rgb=None, return_tensors=None,
    ) -> BatchFeature:  # fmt: skip
        if do_convert_rgb not in (None, True):
            raise ValueError("`do_convert_rgb` is False, but mPLUG-Owl takes RGB images: leave it out.")
        viewed = self.viewer(do_resize, size, resample)
        budget = Budget(self.max_pixels)
        views = [
            view for image in flat_list(self.list_images(images)) for view in viewed(open_image(image, budget)).items()
        ]
        table = self._table(do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        levels = [np.asarray(image).transpose(2, 0, 1) for _, image in views]
        pixel_values: Any = [np.empty(image.shape, table.dtype) for image in levels]
        if len({image.shape for image in levels}) == 1 and return_tensors is not None:
            # One array becomes a tensor without a copy.
            pixel_values = np.empty((len(levels), *levels[0].shape), table.dtype)
        for image, values in zip(levels, pixel_values, strict=True):
            for colour in range(3):
                np.take(table[colour], image[colour], out=values[colour], mode="clip")
        data = {"pixel_values": pixel_values}
        if self.max_crops > 1:
            data["crop_positions"] = np.array([position for position, _ in views])
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _table(self, do_rescale, rescale_factor, do_normalize, image_mean, image_std) -> np.ndarray:
        """The value of each of the 256 levels of each colour, (3, 256): the library's, to the last bit."""
        table = np.tile(np.arange(256, dtype=np.uint8), (3, 1, 1))
        if self.do_rescale if do_rescale is None else do_rescale:
            table = self.rescale(table, self.rescale_factor if rescale_factor is None else rescale_factor)
        if self.do_normalize if do_normalize is None else do_normalize:
            mean = self.image_mean if image_mean is None else image_mean
            table = self.normalize(table, mean, self.image_std if image_std is None else image_std)
        return table[:, 0]

    def resizer(self, do_resize=None, size=None, resample=None) -> Callable[[PIL.Image.Image], PIL.Image.Image]:
        """The function that resizes a decoded image."""
        if not (self.do_resize if do_resize is None else do_resize):
            return lambda image: image
        sides = sides_of(self.size if size is None else size)
        resample = self.resample if resample is None else resample
        return lambda image: resize(image, sides, resample)

    def viewer(self, do_resize=None, size=None, resample=None) -> Callable[[PIL.Image.Image], Views]:
        """The function that gives the views of an image by crop position, in order."""
        resized = self.resizer(do_resize, size, resample)
        if self.max_crops == 1 or not (self.do_resize if do_resize is None else do_resize):
            return lambda image: {WHOLE: resized(image)}
        width, height = sides_of(self.size if size is None else size)
        resample = self.resample if resample is None else resample

        def views(image: PIL.Image.Image) -> Views:
            rows, columns = grid = choose_grid(image.size, (width, height), self.max_crops)
            if grid == (1, 1):
                return {WHOLE: resized(image)}
            return {WHOLE: resized(image), **cut(resize(image, (columns * width, rows * height), resample), grid)}

        return views

    def count_views(self, width: int, height: int) -> int:
        """Number of views of an image of this size, in pixels."""
        rows, columns = choose_grid((width, height), sides_of(self.size), self.max_crops)
        return 1 if rows * columns == 1 else 1 + rows * columns

    def list_images(self, images):
        """The images of a call, not yet opened; lists keep their structure."""
        if isinstance(images, (list, tuple)):
            if all(isinstance(entry, (list, tuple)) and not entry for entry in images):
                raise ValueError("An empty list of images was given: give at least one, or leave `images` out.")
            return [
                [] if isinstance(entry, (list, tuple)) and not entry else self.list_images(entry) for entry in images
            ]
        is_batch = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4
        return list(images) if is_batch else images

    def fetch_images(self, image_url_or_urls):
        """Opens images given by path, URL or base64, and converts every image to RGB; lists keep their structure."""
        budget = Budget(self.max_pixels)

        def opened(images):
            return [opened(image) for image in images] if isinstance(images, list) else open_image(images, budget)

        return opened(self.list_images(image_url_or_urls))


class Budget:
    """Counts the pixels of a call before they are decoded: at most `max_pixels` a file, and `at_once` times as many."""

    def __init__(self, max_pixels: int = MAX_PIXELS, at_once: int = MOST_AT_ONCE):
        self.max_pixels = max_pixels
        self.left = self.most = max_pixels * at_once

    def count(self, width: int, height: int, times: int = 1, weight: int = 1) -> None:
        pixels = width * height
        self.left -= pixels * times * weight
        if pixels * weight > self.max_pixels or self.left < 0:
            most = f"{self.max_pixels // weight:,} are allowed, {self.most // weight:,}"
            raise ValueError(
                f"{width} x {height} pixels are {pixels:,}, but at most {most} "
                "for all images or frames of a call: give smaller or fewer ones, or raise the processor's `max_pixels`"
            )

    def take(self, image: Any) -> None:
        """Counts an image that comes from a file and is not decoded yet."""
        if getattr(image, "fp", None) is None:
            return
        if image.format in REFUSED:
            raise ValueError(f"{image.format} files {REFUSED[image.format]}: convert it to PNG")
        pixels = image.width * image.height
        if image.info.get("progressive"):
            image.fp.seek(0)
            scans = image.fp.read().count(b"\xff\xda")
            if scans * pixels > MOST_SCANS * self.max_pixels:
                raise ValueError(f"it has {pixels:,} pixels in {scans} scans: save it as a plain JPEG")
        factor = next((factor for factor in (1, 2, 4, 8) if pixels <= self.max_pixels * factor**2), 8)
        if factor > 1:
            image.draft(image.mode, (image.width // factor, image.height // factor))  # of JPEGs alone
        self.count(image.width, image.height, weight=HEAVY.get(image.format, 1))


def open_image(image, budget: Budget) -> PIL.Image.Image:
    """Opens an image of a call as an RGB image."""
    if isinstance(image, (str, bytes, os.PathLike)):
        return read_image(image, budget)
    if isinstance(image, PIL.Image.Image):
        budget.take(image)
        return as_shown(image)
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return from_array(image)
    raise ValueError(
        f"An image is of type {type(image).__name__}, but must be a PIL image, an array, a path, a URL or the bytes of "
        "a file."
    )


def flat_list(images) -> list[PIL.Image.Image]:
    """Images in a flat list, however they were nested."""
    if isinstance(images, (list, tuple)):
        return [image for entry in images for image in flat_list(entry)]
    return [images]


def sides_of(size) -> tuple[int, int]:
    """Width and height in pixels, of `{"height": ..., "width": ...}` or one number for both."""
    sides = (size, size) if isinstance(size, int) else (size.get("width"), size.get("height"))
    fits = all(isinstance(side, int) and 0 < side <= LARGEST for side in sides)
    expect(fits, "`size`", size, f"`height` and `width` from 1 to {LARGEST}")
    return sides


def resize(
    image: PIL.Image.Image, size: tuple[int, int], resample: int, box: tuple[float, float, float, float] | None = None
) -> PIL.Image.Image:
    """
    As `image.resize(size, resample, box)` in Pillow 13, with any Pillow: the two passes round to levels in between, so
    their order decides. Since 13 the columns come first where the height shrinks by more than twice what the width
    does; before, the rows always came first.

    Args:
        image (`PIL.Image.Image`): The image.
        size (`tuple[int, int]`): Width and height in pixels.
        resample (`int`): Filter of Pillow.
        box (`tuple`, *optional*): Left, top, right and bottom of the part to resize, in pixels.
    """
    (wide, high), (width, height) = image.size, size
    left, top, right, bottom = box or (0, 0, wide, high)
    if high - height > max(0, 2 * (wide - width)):
        columns = image.resize((wide, height), resample, (0, top, wide, bottom))
        return columns.resize(size, resample, (left, 0, right, height))
    rows = image.resize((width, high), resample, (left, 0, right, high))
    return rows.resize(size, resample, (0, top, width, bottom))


def release_settings(settings: dict[str, Any], folder, default: dict[str, int], kwargs: dict) -> dict[str, Any]:
    """Our own settings unchanged; of an original release those that took effect, with the model's `image_size`."""
    if "auto_map" in settings:
        return settings
    config, _ = PreTrainedConfig.get_config_dict(folder, **kwargs)
    side = config.get("vision_config", {}).get("image_size", default["height"])
    kept = {name: settings[name] for name in ("image_mean", "image_std") if name in settings}
    return kept | {"size": {"height": side, "width": side}}


def short_name(source: str | os.PathLike) -> str:
    """A file's name for messages, shortened."""
    text = os.fsdecode(source)
    return text if len(text) < 200 else text[:80] + "..."


def readable(source: str | os.PathLike, kind: str) -> str | io.BytesIO:
    """
    The path of a file, or the content of an http(s) URL, a `data:` URL or base64 text.

    Args:
        source (`str` or path): Path, URL or base64 text.
        kind (`str`): "image" or "video".

    Raises:
        ValueError, OSError: if the source is not a file, or cannot be fetched.
    """
    text = os.fsdecode(source)
    if text[:8].lower().startswith(("http://", "https://")):
        return io.BytesIO(download(text, kind))
    if text.startswith(("data:image/", "data:video/")):
        return io.BytesIO(base64.b64decode(text.partition(",")[2], validate=True))
    if len(text) >= SHORTEST and not os.path.exists(text) and (len(text) >= 200 or BASE64.fullmatch(text)):
        return io.BytesIO(base64.b64decode(text, validate=True))
    if os.path.exists(text) and not os.path.isfile(text):
        raise ValueError("it is not a file")
    return text


def read_image(source: str | os.PathLike | bytes, budget: Budget | None = None) -> PIL.Image.Image:
    """
    Reads an RGB image from a path, an http(s) URL, a `data:` URL, base64 text or the bytes of a file. URLs must be on
    the public internet unless the environment has `TRANSFORMERS_OWL_ALLOW_INTERNAL_URLS=1`; see also [`download`].
    `budget` counts the pixels of several images; by default an image may have `MAX_PIXELS`.

    Raises:
        ValueError: for a source that cannot be read, with the reason.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else readable(source, "image")
        with PIL.Image.open(file) as image:
            (budget or Budget()).take(image)
            return as_shown(image)
    except UNREADABLE as error:
        name = f"of {len(source)} bytes" if isinstance(source, bytes) else repr(short_name(source))
        raise ValueError(f"The image {name} cannot be read: {error or type(error).__name__}") from error


def from_array(array: np.ndarray | torch.Tensor) -> PIL.Image.Image:
    """
    An RGB image from values of 0 to 255, or of 0.0 to 1.0, of shape (height, width), (height, width, channels) or
    (channels, height, width) with 1, 3 or 4 channels.

    Raises:
        ValueError: for another shape, dtype or range of values.
    """
    values = to_numbers(array)
    channels = (1, 3, 4)
    fits = values.ndim == 2 or (values.ndim == 3 and (values.shape[0] in channels or values.shape[-1] in channels))
    if not fits or values.size == 0 or values.dtype.kind not in "uif":
        raise ValueError(
            f"An image array has shape {values.shape} and dtype {values.dtype}, but must be numbers of shape (height, "
            "width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels."
        )
    if values.ndim == 3 and values.shape[-1] not in channels:
        values = values.transpose(1, 2, 0)
    values = to_levels(values)
    return as_shown(PIL.Image.fromarray(values.squeeze(2) if values.shape[2:] == (1,) else values))


def to_numbers(array: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        try:
            # NumPy has no bfloat16.
            array = (array.float() if array.is_floating_point() else array).numpy(force=True)
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"A tensor of shape {tuple(array.shape)} and dtype {array.dtype} on {array.device} cannot be converted "
                f"to NumPy: {error}"
            ) from error
    return np.asarray(array)


def to_levels(array: np.ndarray | torch.Tensor) -> np.ndarray:
    """
    Converts a non-empty array of values from 0 to 255, or from 0.0 to 1.0, to levels from 0 to 255 (uint8).

    Raises:
        ValueError: for other values.
    """
    values = to_numbers(array)
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "uif":
        raise ValueError(f"An image array has dtype {values.dtype}, but must hold numbers.")
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
        raise ValueError(
            f"An image array has values from {values.min()} to {values.max()}, but must have values from 0 to 255, or "
            "from 0.0 to 1.0: the processor rescales and normalises them."
        )
    is_fraction = values.dtype.kind == "f" and values.max() <= 1
    return (values * 255 if is_fraction else values).round().astype(np.uint8)


def as_shown(image: PIL.Image.Image) -> PIL.Image.Image:
    """
    An RGB image (8 bits) as a viewer shows it: EXIF rotation applied, transparent parts white, 16 bits scaled to 8.

    Raises:
        ValueError: if the image's file is damaged.
    """
    try:
        image.load()
        if image.getexif().get(0x0112, 1) != 1:
            image = PIL.ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            image = _to_8_bits(image)
        if image.has_transparency_data:
            image = _by_strips(image, _on_white, "RGB")
        return image if image.mode == "RGB" else image.convert("RGB")
    except UNREADABLE as error:
        raise ValueError(f"An image is damaged: {error or type(error).__name__}") from error


def _strips(image: PIL.Image.Image) -> list[tuple[int, int, int, int]]:
    rows = max(1, STRIP // image.width)
    return [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]


def _by_strips(image: PIL.Image.Image, convert: Callable, mode: str) -> PIL.Image.Image:
    """`convert(image)` strip by strip, since copies of the whole image may not fit into memory."""
    made = PIL.Image.new(mode, image.size)
    for box in _strips(image):
        made.paste(convert(image.crop(box)), box)
    return made


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    white = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _to_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Greyscale of 16 or 32 bits (0 to 65535) or of floats (0 to 1) to 8 bits; smaller ranges of values stay."""

    def numbers(strip: PIL.Image.Image) -> np.ndarray:
        return np.nan_to_num(np.asarray(strip, dtype=np.float64))

    largest = max(numbers(image.crop(box)).max(initial=0) for box in _strips(image))
    is_fraction = image.mode == "F" and largest <= 1
    divisor = 257 if not is_fraction and (largest > 255 or image.mode.startswith("I;16")) else 1

    def levels(strip: PIL.Image.Image) -> PIL.Image.Image:
        values = numbers(strip) * 255 if is_fraction else numbers(strip) / divisor
        return PIL.Image.fromarray(values.round().clip(0, 255).astype(np.uint8))

    return _by_strips(image, levels, "L")


MplugOwlImageProcessor.register_for_auto_class()

__all__ = ["MplugOwlImageProcessor"]
