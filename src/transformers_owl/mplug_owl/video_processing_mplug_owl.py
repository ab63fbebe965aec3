# SPDX-License-Identifier: Apache-2.0
"""Videos to pixels: some frames of each, prepared as images are. Files are decoded by PyAV, which brings FFmpeg
along; torchvision is not needed.
"""

import bisect
import io
import math
import mimetypes
import os
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import VideosKwargs
from transformers.video_utils import VideoMetadata

from .configuration_mplug_owl import expect
from .image_processing_mplug_owl import (
    MAX_PIXELS,
    UNREADABLE,
    Budget,
    MplugOwlImageProcessor,
    as_shown,
    open_image,
    readable,
    release_settings,
    short_name,
    to_levels,
)
from .library_mplug_owl import VideoProcessorMixin


# Containers that FFmpeg may look for. Playlists, which make it open further addresses, are not among them.
CONTAINERS = "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg"
MOST_FRAMES = 4096  # of a video, for the model
MOST_OF_A_VIDEO = 64  # times a frame's `max_pixels // 2` for all frames that are taken of it
TOLERANCE = 1e-6  # seconds


class MplugOwlVideosKwargs(VideosKwargs, total=False):
    pad_size: dict[str, int] | None
    timestamps: list[int | float] | list[list[int | float]] | None


class MplugOwlVideoProcessor(MplugOwlImageProcessor, VideoProcessorMixin):
    r"""
    Prepares videos for mPLUG-Owl. Frames become pixels as images do: straight to a square by PIL's bicubic filter.

    Args:
        num_frames (`int`, defaults to 4): Number of frames sampled from a video, spaced as in the original. Frames of a
            shorter video are repeated.
        do_sample_frames (`bool`, defaults to `True`): Whether to sample frames; `False` takes all of them.
        size, resample, image_mean, image_std: As in [`MplugOwlImageProcessor`].

    Calling it with videos gives `pixel_values_videos` (videos, frames, 3, height, width). A video is a file (mp4, webm,
    avi, gif and others, by path, URL or base64), an array (frames, height, width, 3) or (frames, 3, height, width), or
    a list of images. Frames are sampled by one of

        num_frames (`int`): this many, spread over the video;
        fps (`float`): one every 1 / fps seconds, from the start;
        timestamps (`list[float]`, or one list per video): the frames shown at these seconds after the first frame.

    Seconds are those of the file, also with a variable frame rate; an array or a list of images needs
    `video_metadata={"fps": ...}` for them. All videos of a call must give the same number of frames.

    Raises:
        ValueError: for videos that cannot be read or have no frames, and for conflicting arguments.
        ImportError: for a video file if PyAV is not installed.
    """

    valid_kwargs = MplugOwlVideosKwargs
    num_frames = 4
    do_sample_frames = True

    @classmethod
    def get_video_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Reads the settings of a folder; an original release has its `image_size` in the model's configuration."""
        settings, remaining = super().get_video_processor_dict(pretrained_model_name_or_path, **kwargs)
        return release_settings(settings, pretrained_model_name_or_path, cls.size, kwargs), remaining

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values_videos"]

    def preprocess(
        self, videos, num_frames=None, fps=None, timestamps=None, do_sample_frames=None, video_metadata=None,
        return_metadata=False, return_tensors=None, **kwargs,
    ) -> BatchFeature:  # fmt: skip
        clips = _flat(videos_by_row(videos))
        sampling = {"num_frames": num_frames, "fps": fps, "timestamps": timestamps}
        resized = self.resizer(*(kwargs.get(name) for name in ("do_resize", "size", "resample")))
        read = [
            read_frames(clip, video_fps=rate, max_pixels=self.max_pixels, prepare=resized, **choice)
            for clip, rate, choice in zip(
                clips,
                _rates(video_metadata, len(clips)),
                self._choices(sampling, do_sample_frames, len(clips)),
                strict=True,
            )
        ]
        counts = [len(frames) for frames, _ in read]
        if return_tensors is not None and len(set(counts)) > 1:
            raise ValueError(
                f"The videos give {counts} frames, but those of a batch must have the same number: set `num_frames`."
            )
        flat = [frame for frames, _ in read for frame in frames]
        pixels = MplugOwlImageProcessor.preprocess(self, flat, return_tensors=return_tensors, **kwargs)["pixel_values"]
        data: dict[str, Any] = {"pixel_values_videos": _by_video(pixels, counts)}
        if return_metadata:
            data["video_metadata"] = [metadata for _, metadata in read]
        return BatchFeature(data)

    def sample_frames(self, metadata, num_frames=None, fps=None, timestamps=None, **kwargs) -> np.ndarray:
        """Indices of the frames sampled from a video with `metadata.total_num_frames` at a constant frame rate."""
        (choice,) = self._choices({"num_frames": num_frames, "fps": fps, "timestamps": timestamps}, None, 1)
        count = metadata.total_num_frames
        times, duration = _steady(count, metadata.fps)
        return np.array(choose_frames(count, times, duration, **choice))

    def _choices(self, sampling: dict, do_sample_frames: bool | None, count: int) -> list[dict[str, Any]]:
        """How to sample each video: one entry of `sampling`, or none for all frames."""
        given = {name: value for name, value in sampling.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given, but only one of {', '.join(sampling)} can be.")
        if do_sample_frames is None:
            do_sample_frames = self.do_sample_frames or bool(given)
        if not do_sample_frames:
            if given:
                raise ValueError(f"`do_sample_frames` is False, but {given} is given: leave one of them out.")
            return [{}] * count
        given = given or {"num_frames": self.num_frames}
        moments = given.get("timestamps")
        if moments is None or not any(isinstance(entry, (list, tuple)) for entry in moments):
            return [given] * count
        if len(moments) != count:
            raise ValueError(f"`timestamps` has {len(moments)} lists for {count} videos: give one list for each.")
        return [{"timestamps": entry} for entry in moments]


def read_frames(
    video, num_frames: int | None = None, fps: float | None = None, timestamps: Sequence[float] | None = None,
    video_fps: float | None = None, max_pixels: int = MAX_PIXELS, prepare: Callable | None = None,
) -> tuple[list[PIL.Image.Image], VideoMetadata]:  # fmt: skip
    """
    Reads frames of one video as RGB images, and their metadata.

    Args:
        video: A path, URL, base64 text or the bytes of a file; a 4D array, or a list of images.
        num_frames, fps, timestamps: At most one of them, as in [`MplugOwlVideoProcessor`]; without any, all frames. An
            array or a list of exactly `num_frames` frames is taken whole.
        video_fps (`float`, *optional*): Frame rate of an array or a list, in frames per second.
        max_pixels (`int`): Limit in pixels: half of it for a frame of a file, 32 times for all frames.
        prepare (`Callable`, *optional*): Applied to each frame once it is decoded.

    Raises:
        ValueError: for a video that cannot be read or is too large, and if seconds are needed but the frame rate is not
            known.
    """
    sizes = []

    def prepared(frame: PIL.Image.Image) -> PIL.Image.Image:
        sizes.append(frame.size)
        return frame if prepare is None else prepare(frame)

    if isinstance(video, (str, os.PathLike, bytes)):
        file = VideoFile(video)
        numbers = choose_frames(len(file), file.times, file.duration, num_frames, fps, timestamps)
        frames = file.frames(numbers, prepared, Budget(max_pixels // 2, MOST_OF_A_VIDEO))
        count, duration, rate, backend = len(file), file.duration, file.fps, "pyav"
    else:
        count = len(video)
        times, duration = _steady(count, video_fps)
        numbers = choose_frames(count, times, duration, None if num_frames == count else num_frames, fps, timestamps)
        if isinstance(video, (np.ndarray, torch.Tensor)):
            video = to_levels(video)  # one scale for all of its frames
        budget = Budget(max_pixels)
        frames = [prepared(open_image(video[number], budget)) for number in numbers]
        rate, backend = video_fps, None
    width, height = sizes[0]
    return frames, VideoMetadata(
        total_num_frames=count, fps=rate, width=width, height=height, duration=duration, video_backend=backend,
        frames_indices=numbers,
    )  # fmt: skip


def choose_frames(
    count: int, times: Sequence[float] | None, duration: float | None, num_frames: int | None = None,
    fps: float | None = None, timestamps: Sequence[float] | None = None,
) -> list[int]:  # fmt: skip
    """
    Indices of the sampled frames, in order.

    Args:
        count (`int`): Number of frames in the video.
        times (`Sequence[float]`, *optional*): Start of each frame in seconds, from 0.
        duration (`float`, *optional*): End of the last frame in seconds.
        num_frames, fps, timestamps: As in [`MplugOwlVideoProcessor`]; without any, all frames.
    """
    if fps is not None or timestamps is not None:
        if times is None or duration is None:
            raise ValueError(
                "The frame rate of an array or a list of images is unknown: pass `video_metadata={'fps': ...}`, or "
                "sample by `num_frames`."
            )
        moments = _moments(duration, fps, timestamps)
        return [max(0, bisect.bisect_right(times, moment + TOLERANCE) - 1) for moment in moments]
    if num_frames is None:
        expect(count <= MOST_FRAMES, "the number of frames", count, f"at most {MOST_FRAMES}: set `num_frames`")
        return list(range(count))
    fits = type(num_frames) is int and 0 < num_frames <= MOST_FRAMES
    expect(fits, "num_frames", num_frames, f"an integer from 1 to {MOST_FRAMES}")
    step = (count - 1) / num_frames
    return [int(step / 2) + round(step * number) for number in range(num_frames)]


def _moments(duration: float, fps: float | None, timestamps: Sequence[float] | None) -> list[float]:
    """Seconds at which frames are sampled."""
    if timestamps is None:
        fits = isinstance(fps, (int, float)) and 0 < fps < math.inf and duration * fps <= MOST_FRAMES
        expect(fits, "fps", fps, f"positive, with at most {MOST_FRAMES} frames per video")
        assert fps is not None
        return [number / fps for number in range(max(1, math.ceil((duration - TOLERANCE) * fps)))]
    fits = isinstance(timestamps, (list, tuple)) and 0 < len(timestamps) <= MOST_FRAMES
    fits = fits and all(isinstance(moment, (int, float)) and 0 <= moment <= duration for moment in timestamps)
    expect(fits, "timestamps", timestamps, f"a list of seconds from 0 to {duration:.3f}")
    return list(timestamps)


class VideoFile:
    """
    The frames of a video file, indexed in presentation order. Opening reads the packets without decoding; `frames`
    decodes from the last key frame before each requested frame.

    Args:
        source (`str`, path or `bytes`): Path, http(s) URL, `data:` URL, base64 text, or the bytes of a file. For URLs
            see [`download`].

    Raises:
        ValueError: for a file that cannot be read, with the reason.
    """

    def __init__(self, source: str | os.PathLike | bytes):
        self.name = f"of {len(source)} bytes" if isinstance(source, bytes) else short_name(source)
        with self._errors():
            opened = source if isinstance(source, bytes) else readable(source, "video")
            self.source = opened.getvalue() if isinstance(opened, io.BytesIO) else opened
            with self._open() as (container, stream):
                packets = [
                    (packet.dts if packet.pts is None else packet.pts, packet.duration or 0, packet.is_keyframe)
                    for packet in container.demux(stream)
                    if packet.size and not packet.is_discard
                ]
                self.width, self.height = stream.codec_context.width, stream.codec_context.height
                unit, rate, is_reordered = stream.time_base, stream.average_rate, stream.codec_context.has_b_frames
            if not packets or any(mark is None for mark, _, _ in packets):
                raise ValueError("its frames have no timestamps" if packets else "it has no frames")
        arrival = [mark for mark, _, _ in packets]
        self.marks: list[int] = sorted(arrival)
        self.keys = [(mark, number) for number, (mark, _, is_key) in enumerate(packets) if is_key]
        # AVI has no times of its own: those of its frames are in the order of decoding.
        self.is_untimed = bool(is_reordered) and arrival == self.marks
        self.times = [float((mark - self.marks[0]) * unit) for mark in self.marks]
        last = {mark: length for mark, length, _ in packets}[self.marks[-1]]
        mean = self.times[-1] / (len(packets) - 1) if len(packets) > 1 else float(1 / rate) if rate else 0.0
        self.duration = self.times[-1] + (float(last * unit) or mean)
        self.fps = len(packets) / self.duration if self.duration else None

    def __len__(self) -> int:
        return len(self.marks)

    def frames(
        self, numbers: Sequence[int], prepare: Callable = lambda frame: frame, budget: Budget | None = None
    ) -> list[PIL.Image.Image]:
        """Frames by index as RGB images, rotated as a viewer shows them, each after `prepare`."""
        with self._errors():
            wanted = sorted(set(numbers))
            if budget is not None:
                budget.count(self.width, self.height, len(wanted))
            decoded = map(prepare, self._decode([self.marks[number] for number in wanted]))
            images = dict(zip(wanted, decoded, strict=True))
        return [images[number] for number in numbers]

    def _decode(self, wanted: list[int]) -> Iterator[PIL.Image.Image]:
        """Frames at the ascending times `wanted`. Packets that none of them needs are not decoded."""
        starts = [max((number for key, number in self.keys if key <= mark), default=0) for mark in wanted]
        done, shown = 0, None
        with self._open() as (container, stream):
            decoding, counted = False, 0
            packets = (packet for packet in container.demux(stream) if not packet.is_discard)
            for number, packet in enumerate(packets):
                if not decoding and number == starts[done]:
                    stream.codec_context.flush_buffers()
                    decoding, counted, shown = True, number, None
                for frame in packet.decode() if decoding else ():
                    mark = self.marks[counted] if self.is_untimed else frame.pts
                    counted += 1
                    while done < len(wanted) and mark >= wanted[done]:
                        # Where no frame begins at that time, the one before it is still shown.
                        yield _shown(frame if mark == wanted[done] or shown is None else shown)
                        done += 1
                    if done == len(wanted):
                        return
                    shown = frame
                    decoding = starts[done] <= number
        if shown is None:
            raise ValueError(f"no frame can be decoded at {self.times[self.marks.index(wanted[done])]:.3f} seconds")
        yield from (_shown(shown) for _ in wanted[done:])

    @contextmanager
    def _open(self):
        av = _import_av()
        options = {"format_whitelist": CONTAINERS}
        source = self.source
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file,
            av.open(file, container_options=options) as container,
        ):
            if not container.streams.video:
                raise ValueError("it has no video track")
            yield container, container.streams.video[0]

    @contextmanager
    def _errors(self):
        try:
            yield
        except (_import_av().FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"The video {self.name!r} cannot be read: {error}") from error


def _import_av():
    try:
        import av
    except ImportError as error:
        raise ImportError('Video files are decoded by PyAV, which is missing: run `pip install "av>=14.2"`.') from error
    return av


def _shown(frame) -> PIL.Image.Image:
    """A decoded frame as an image: rotated by the file's metadata, on white where transparent."""
    is_transparent = any(component.is_alpha for component in frame.format.components)
    levels = frame.to_ndarray(format="rgba" if is_transparent else "rgb24")
    return as_shown(PIL.Image.fromarray(np.ascontiguousarray(np.rot90(levels, frame.rotation // 90))))


def videos_by_row(videos) -> list:
    """
    The videos of a call as a list, nested by row if they were given that way. Lists of images become tuples.

    Raises:
        ValueError: for anything that is not a video.
    """
    is_rows = isinstance(videos, (list, tuple)) and all(
        isinstance(row, (list, tuple)) and not _is_frames(row) for row in videos
    )
    found = [_flat(row) for row in videos] if is_rows else _flat(videos)
    if not any(found) if is_rows else not found:
        raise ValueError("An empty list of videos was given: give at least one, or leave `videos` out.")
    return found


def _flat(videos) -> list:
    """Videos in a flat list, however they were nested."""
    if _is_image(videos):
        return [(videos,)]
    if isinstance(videos, (str, os.PathLike, bytes)):
        return [videos]
    is_array = isinstance(videos, (np.ndarray, torch.Tensor))
    if is_array and videos.ndim in (4, 5) and 0 not in videos.shape:
        return [videos] if videos.ndim == 4 else list(videos)
    if isinstance(videos, (list, tuple)):
        return [tuple(videos)] if _is_frames(videos) else [video for entry in videos for video in _flat(entry)]
    what = f"an array of shape {tuple(videos.shape)}" if is_array else f"of type {type(videos).__name__}"
    raise ValueError(
        f"A video is {what}, but must be a path, a URL, an array (frames, height, width, 3) or a list of images."
    )


def _is_frames(values) -> bool:
    return len(values) > 0 and all(_is_image(value) for value in values)


def _is_image(value) -> bool:
    """Whether a value is one frame: an image, an array of one, or the name of an image file."""
    if isinstance(value, (str, os.PathLike)):
        kind = media_type(value)
        return kind.startswith("image/") and kind not in ANIMATIONS
    return isinstance(value, PIL.Image.Image) or (
        isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim in (2, 3)
    )


ANIMATIONS = ("image/gif",)


def media_type(source) -> str:
    """The media type by the name of a file or URL, such as "video/mp4"; "" if it is unknown."""
    if not isinstance(source, (str, os.PathLike)):
        return ""
    name = os.fsdecode(source)
    if name.startswith("data:"):
        return name[5:].partition(";")[0]
    if name.lower().startswith(("http://", "https://")):
        name = urllib.parse.urlsplit(name).path
    return mimetypes.guess_type(name)[0] or ""


def visual_part(source, sees_videos: bool = False) -> dict[str, Any]:
    """
    The part of a chat message for an image or a video: a file or URL is recognised by its name, bytes by their content,
    an array by its dimensions; a list of images is a video. An animated GIF is a video for models that take videos, and
    its first frame for others.
    """
    kind = media_type(source)
    is_video = kind.startswith("video/") or isinstance(source, (list, tuple))
    if sees_videos and kind in ANIMATIONS:
        is_video = _is_animated(source) is not False
    if isinstance(source, bytes):
        is_animated = _is_animated(io.BytesIO(source))
        is_video = is_animated is None or (is_animated and sees_videos)
    is_video |= isinstance(source, (np.ndarray, torch.Tensor)) and source.ndim == 4
    kind = "video" if is_video else "image"
    return {"type": kind, kind: source}


def _is_animated(file) -> bool | None:
    """Whether an image file has several frames; `None` if it is not an image. A URL is not opened."""
    try:
        with PIL.Image.open(file) as image:
            return getattr(image, "is_animated", False)
    except UNREADABLE:
        return None


def _steady(count: int, fps: float | None) -> tuple[list[float] | None, float | None]:
    """Start times and duration in seconds of frames at a constant rate, if the rate is known."""
    return (None, None) if fps is None else ([number / fps for number in range(count)], count / fps)


def _rates(video_metadata, count: int) -> list[float | None]:
    """Frames per second of each video, from one entry of metadata for all videos or one for each."""
    if not isinstance(video_metadata, (list, tuple)):
        video_metadata = [video_metadata] * count
    entries = [entry for row in video_metadata for entry in (row if isinstance(row, (list, tuple)) else [row])]
    if len(entries) != count:
        raise ValueError(f"`video_metadata` has {len(entries)} entries for {count} videos: give one for each.")
    rates = [None if entry is None else dict(entry).get("fps") for entry in entries]
    for rate in rates:
        fits = rate is None or (isinstance(rate, (int, float)) and 0 < rate < math.inf)
        expect(fits, "fps of `video_metadata`", rate, "a positive number")
    return rates


def _by_video(pixels, counts: list[int]):
    """Pixels (frames of all videos, 3, height, width) as (videos, frames, ...), or a list of arrays for each video."""
    if isinstance(pixels, (np.ndarray, torch.Tensor)):
        return pixels.reshape(len(counts), counts[0], *pixels.shape[1:])
    ends = np.cumsum(counts)
    return [np.stack(pixels[end - count : end]) for end, count in zip(ends, counts, strict=True)]


MplugOwlVideoProcessor.register_for_auto_class()

__all__ = ["MplugOwlVideoProcessor"]
