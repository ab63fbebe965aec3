"""Small video files in which every frame can be told from the others."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image


def frame(number: int) -> np.ndarray:
    """A frame of the grey level 8 * `number`, with a darker left half."""
    level = np.full((48, 64, 3), 8 * number, np.uint8)
    level[:, :32] //= 2
    return level


def number_of(image: PIL.Image.Image) -> int:
    """Which frame a decoded one is, by the grey of its right upper corner."""
    return round(np.asarray(image)[:20, 40:].mean() / 8)


def write_clip(path, codec: str, count: int = 24, times=None, pixels: str = "yuv420p", **options) -> str:
    """A file of `count` frames at 10 a second, or at `times` in milliseconds; key frames every 8."""
    unit = Fraction(1, 10) if times is None else Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.time_base = unit
        if codec != "gif":
            stream.gop_size, stream.bit_rate = 8, 4_000_000
        for number in range(count):
            image = av.VideoFrame.from_ndarray(frame(number), format="rgb24").reformat(format=pixels)
            image.time_base, image.pts = unit, number if times is None else times[number]
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return str(path)


def rotate_clip(path, target) -> str:
    """A copy of an mp4 file whose metadata ask for a quarter turn clockwise."""
    content = bytearray(Path(path).read_bytes())
    start = content.index(b"tkhd") + 44
    turn = (0, 1, 0, -1, 0, 0, 0, 0, 2**14)
    scale = 2**16
    content[start : start + 36] = b"".join((value * scale).to_bytes(4, "big", signed=True) for value in turn)
    Path(target).write_bytes(content)
    return str(target)


def spoil_clip(path, target, first: int, last: int) -> str:
    """A copy in which the content of the packets `first` to `last`, in the order of the file, is zeros."""
    content = bytearray(Path(path).read_bytes())
    with av.open(str(path)) as container:
        for packet in list(container.demux(video=0))[first : last + 1]:
            content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    Path(target).write_bytes(content)
    return str(target)
