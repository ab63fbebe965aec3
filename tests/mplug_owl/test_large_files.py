"""What is too large for the memory is refused before it is decoded; all else keeps its pixels."""

import struct
import zlib

import numpy as np
import PIL.features
import PIL.Image
import pytest
from clips import write_clip

from transformers_owl import MplugOwlImageProcessor, MplugOwlVideoProcessor
from transformers_owl.mplug_owl import image_processing_mplug_owl, video_processing_mplug_owl
from transformers_owl.mplug_owl.image_processing_mplug_owl import as_shown, read_image


@pytest.fixture
def image_processor():
    return MplugOwlImageProcessor(size={"height": 28, "width": 28})


def header_of(kind: str, width: int, height: int) -> bytes:
    """The beginning of a file that says how large its image is."""
    if kind == "gif":
        place = struct.pack("<4HB", 0, 0, width, height, 0)
        return b"GIF89a" + struct.pack("<HH", width, height) + bytes(3) + b"," + place + b"\2"
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


@pytest.mark.parametrize("kind", ["gif", "png"])
@pytest.mark.parametrize("give", ["path", "bytes", "image", "list"])
def test_large_files_are_refused_by_their_headers(kind, give, tmp_path, image_processor):
    """Before the rest, which is missing here, is read."""
    content = header_of(kind, 8193, 8192)
    path = tmp_path / f"large.{kind}"
    path.write_bytes(content)
    message = (
        r"8193 x 8192 pixels are 67,117,056, but at most 67,108,864 are allowed.* or raise the processor's `max_pixels`"
    )
    with pytest.raises(ValueError, match=message):
        if give == "bytes":
            read_image(content)
        elif give == "image":
            image_processor(PIL.Image.open(path))
        else:
            image_processor(str(path) if give == "path" else [PIL.Image.new("RGB", (9, 9)), path])


def test_sizes_are_summed_over_a_call(image_processor, tmp_path):
    path = tmp_path / "image.png"
    PIL.Image.new("RGB", (50, 40)).save(path)
    image_processor.max_pixels = 2000
    assert len(image_processor([path] * 6)["pixel_values"]) == 6
    for call in (image_processor, image_processor.fetch_images):
        for images in ([path] * 7, [[path] * 3, [path] * 4], [PIL.Image.open(path) for _ in range(7)]):
            with pytest.raises(ValueError, match="12,000 for all images or frames of a call: give smaller or fewer"):
                call(images)
    assert len(image_processor([PIL.Image.new("RGB", (500, 400))] * 9)["pixel_values"]) == 9  # decoded by their owner


def test_the_limit_is_saved(image_processor, tmp_path):
    image_processor.save_pretrained(tmp_path)
    assert MplugOwlImageProcessor.from_pretrained(tmp_path).max_pixels == 2**26
    MplugOwlImageProcessor(max_pixels=2000).save_pretrained(tmp_path)
    assert MplugOwlImageProcessor.from_pretrained(tmp_path).max_pixels == 2000


@pytest.mark.parametrize("side", [100, 101, 141, 199, 400, 799, 1200])
def test_only_jpegs_over_the_limit_are_decoded_smaller(side, image_processor, tmp_path):
    path = tmp_path / "image.jpg"
    content = PIL.Image.radial_gradient("L").resize((side, side)).convert("RGB")
    content.save(path, quality=95)
    whole = np.asarray(read_image(path))
    image_processor.max_pixels = 10_000
    if side > 800:
        with pytest.raises(ValueError, match="150 x 150 pixels are 22,500, but at most 10,000"):
            image_processor.fetch_images(path)
        return
    seen = image_processor.fetch_images(path)
    assert seen.width <= 100 and seen.width * 2 >= min(side, 100)
    if side <= 100:
        assert np.array_equal(np.asarray(seen), whole)
    else:
        wanted = np.asarray(content.resize(seen.size, PIL.Image.Resampling.BOX)).astype(int)
        assert np.abs(np.asarray(seen) - wanted).mean() < 3


def test_jpegs_of_many_scans_are_refused(image_processor, tmp_path):
    path = tmp_path / "image.jpg"
    PIL.Image.new("RGB", (100, 100)).save(path, progressive=True)
    image_processor.max_pixels = 10_000
    assert image_processor(path)["pixel_values"]
    content = path.read_bytes()
    start = content.rindex(b"\xff\xda")
    path.write_bytes(content[:start] + content[start:-2] * 20 + content[-2:])
    with pytest.raises(ValueError, match=r"it has 10,000 pixels in \d\d scans: save it as a plain JPEG"):
        image_processor(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "I", "F"])
def test_conversion_by_strips_changes_no_pixel(mode, monkeypatch):
    levels = np.random.default_rng(0).integers(0, 256, (37, 23, 4), np.uint8)
    if mode in ("I;16", "I", "F"):
        values = levels[..., 0].astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]) * (
            1 if mode == "F" else 200
        )
        image = PIL.Image.fromarray(values)
    else:
        image = PIL.Image.fromarray(levels, "RGBA")
        image = image.convert("RGB").convert("P") if mode == "P" else image.convert(mode)
        if mode == "P":
            image.info["transparency"] = 3
    assert image.mode == mode
    at_once = np.asarray(as_shown(image.copy()))
    monkeypatch.setattr(image_processing_mplug_owl, "STRIP", 50)
    assert np.array_equal(np.asarray(as_shown(image.copy())), at_once)


def test_an_image_is_resized_before_the_next_is_decoded(image_processor, monkeypatch, tmp_path):
    steps = []
    for name in ("open_image", "resize"):
        done = getattr(image_processing_mplug_owl, name)
        monkeypatch.setattr(
            image_processing_mplug_owl, name, lambda *args, name=name, done=done: steps.append(name) or done(*args)
        )
    image_processor([PIL.Image.new("RGB", (9, 9))] * 3)
    assert steps == ["open_image", "resize"] * 3


def test_large_videos_are_refused_before_they_are_decoded(monkeypatch, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", "libx264")
    video = video_processing_mplug_owl.VideoFile(path)
    pixels = video.width * video.height
    processor = MplugOwlVideoProcessor(size={"height": 28, "width": 28}, max_pixels=2 * pixels)
    monkeypatch.setattr(video_processing_mplug_owl, "MOST_OF_A_VIDEO", 4)
    assert processor([path], num_frames=4)["pixel_values_videos"][0].shape == (4, 3, 28, 28)

    def fail(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(video_processing_mplug_owl.VideoFile, "_decode", fail)
    with pytest.raises(ValueError, match=f"{4 * pixels:,} for all images or frames"):
        processor([path], num_frames=5)
    processor.max_pixels -= 1
    with pytest.raises(ValueError, match=f"but at most {pixels - 1:,}"):
        processor([path], num_frames=1)


@pytest.mark.parametrize("kind", ["file", "list", "array"])
def test_a_frame_is_resized_before_the_next_is_decoded(kind, monkeypatch, tmp_path):
    processor = MplugOwlVideoProcessor(size={"height": 28, "width": 28})
    video = {
        "file": write_clip(tmp_path / "clip.mp4", "libx264"),
        "list": [PIL.Image.new("RGB", (50, 40))] * 9,
        "array": np.zeros((9, 40, 50, 3), np.uint8),
    }[kind]
    steps = []
    video_module, image_module = video_processing_mplug_owl, image_processing_mplug_owl
    for module, name in ((video_module, "_shown"), (video_module, "open_image"), (image_module, "resize")):
        done = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, done=done: steps.append(name) or done(*args))
    prepared = processor([video], num_frames=4, return_metadata=True)
    assert steps[:8] == ["_shown" if kind == "file" else "open_image", "resize"] * 4
    assert prepared["pixel_values_videos"][0].shape == (4, 3, 28, 28)
    (metadata,) = prepared["video_metadata"]
    if kind != "file":
        assert (metadata.width, metadata.height) == (50, 40)


@pytest.mark.parametrize(("kind", "weight"), [("PNG", 1), ("TIFF", 1), ("WEBP", 2), ("JPEG2000", 2), ("AVIF", 2)])
def test_formats_whose_decoders_hold_more_may_have_fewer_pixels(kind, weight, image_processor, tmp_path):
    if kind == "AVIF" and not PIL.features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / f"image.{kind.lower()}"
    PIL.Image.new("RGB", (50, 40)).save(path, kind)
    image_processor.max_pixels = 2000 * weight
    for image in (path, PIL.Image.open(path)):
        assert image_processor(image)["pixel_values"]
    image_processor.max_pixels -= 1
    for image in (path, PIL.Image.open(path)):
        with pytest.raises(ValueError, match=f"are 2,000, but at most {image_processor.max_pixels // weight:,} are"):
            image_processor(image)
