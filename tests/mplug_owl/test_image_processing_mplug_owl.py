"""Images of every kind become what a viewer shows; anything unreadable is a ValueError that says so."""

import base64
import contextlib
import hashlib
import io
import json
import os
import struct
import zlib

import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import pytest
import torch
from transformers import AutoProcessor
from transformers.image_processing_backends import PilBackend

from transformers_owl import MplugOwlImageProcessor
from transformers_owl.mplug_owl.image_processing_mplug_owl import read_image, resize


def shown(image) -> np.ndarray:
    """The prepared image back as colours of 0 to 255, (height, width, 3)."""
    processor = MplugOwlImageProcessor(size={"height": 4, "width": 4})
    pixels = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    return (pixels * processor.image_std + processor.image_mean) * 255


def assert_colour(image, colour):
    assert np.abs(shown(image) - np.array(colour)).max() <= 1.5


GREY16 = PIL.Image.fromarray(np.full((6, 8), 128 * 257, np.uint16))
CASES = {
    "RGB": (PIL.Image.new("RGB", (8, 6), (10, 200, 30)), (10, 200, 30)),
    "L": (PIL.Image.new("L", (8, 6), 77), (77, 77, 77)),
    "1": (PIL.Image.new("1", (8, 6), 1), (255, 255, 255)),
    "P": (PIL.Image.new("RGB", (8, 6), (0, 0, 255)).convert("P"), (0, 0, 255)),
    "CMYK": (PIL.Image.new("CMYK", (8, 6), (0, 255, 255, 0)), (255, 0, 0)),
    "YCbCr": (PIL.Image.new("RGB", (8, 6), (200, 200, 200)).convert("YCbCr"), (200, 200, 200)),
    "HSV": (PIL.Image.new("RGB", (8, 6), (255, 0, 0)).convert("HSV"), (255, 0, 0)),
    "transparent": (PIL.Image.new("RGBA", (8, 6), (9, 9, 9, 0)), (255, 255, 255)),
    "half transparent": (PIL.Image.new("RGBA", (8, 6), (0, 0, 0, 128)), (127, 127, 127)),
    "LA": (PIL.Image.new("LA", (8, 6), (50, 255)), (50, 50, 50)),
    "16 bits": (GREY16, (128, 128, 128)),
    "32 bits": (PIL.Image.fromarray(np.full((6, 8), 65535, np.int32)), (255, 255, 255)),
    "float": (PIL.Image.fromarray(np.full((6, 8), 0.5, np.float32)), (128, 128, 128)),
    "uint8 array": (np.full((6, 8, 3), 90, np.uint8), (90, 90, 90)),
    "channels first": (np.full((3, 6, 8), 90, np.uint8), (90, 90, 90)),
    "grey array": (np.full((6, 8), 90, np.uint8), (90, 90, 90)),
    "one channel": (np.full((6, 8, 1), 90, np.uint8), (90, 90, 90)),
    "transparent array": (np.zeros((6, 8, 4), np.uint8), (255, 255, 255)),
    "float array": (np.full((6, 8, 3), 0.2), (51, 51, 51)),
    "int array": (np.full((6, 8, 3), 200, np.int64), (200, 200, 200)),
    "bfloat16": (torch.full((3, 6, 8), 60, dtype=torch.bfloat16), (60, 60, 60)),
    "torch": (torch.full((3, 6, 8), 60, dtype=torch.uint8), (60, 60, 60)),
    "one pixel": (PIL.Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_image_is_shown_as_a_viewer_does(name):
    assert_colour(*CASES[name])


def test_palette_with_a_transparent_colour():
    image = PIL.Image.new("P", (8, 6), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.info["transparency"] = 0
    assert_colour(image, (255, 255, 255))


def test_exif_rotation_is_applied(tmp_path):
    image = PIL.Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turn right to show
    image.save(tmp_path / "turned.png", exif=exif)
    colours = shown(str(tmp_path / "turned.png"))
    assert colours[0].min() > 200 and colours[-1].max() < 55


def test_an_animation_is_its_first_frame(tmp_path):
    first, second = PIL.Image.new("RGB", (8, 8), "red"), PIL.Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    assert_colour(str(tmp_path / "moving.gif"), (255, 0, 0))


def encode(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PNG = encode(PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)))
GREEN = encode(PIL.Image.new("RGB", (8, 8), (0, 255, 0)))


def test_base64_and_paths(tmp_path):
    (tmp_path / "green.png").write_bytes(GREEN)
    text = base64.b64encode(encode(PIL.Image.new("RGB", (300, 300), (0, 255, 0)))).decode()
    for source in (tmp_path / "green.png", str(tmp_path / "green.png"), text, "data:image/png;base64," + text):
        assert_colour(source, (0, 255, 0))


def bomb() -> bytes:
    """A PNG of a few bytes that claims 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + PNG[33:]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (PNG[:2000], "truncated"),
        (PNG[:20], ""),
        (b"", "cannot identify"),
        (b"hello", "cannot identify"),
        (PNG[:60] + b"\0" * 400 + PNG[460:], ""),
        (bomb(), "decompression bomb"),
    ],
    ids=["cut off", "cut in the header", "empty", "text", "damaged", "bomb"],
)
def test_damaged_files_are_named(tmp_path, content, reason):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.png' cannot be read: .*{reason}"):
        MplugOwlImageProcessor()(str(path))


def test_what_is_no_plain_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="cannot be read: it is not a file"):
            MplugOwlImageProcessor()(str(path))


def eps() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(file, "EPS")
    return file.getvalue()


def iptc() -> bytes:
    """An EPS file in an envelope."""
    fields = {(3, 60): b"\1\0", (3, 20): b"\0\0\0\10", (3, 30): b"\0\0\0\10", (3, 120): b"\5", (8, 10): eps()[:30000]}
    parts = [struct.pack(">3BH", 0x1C, *name, len(data)) + data for name, data in fields.items()]
    return b"".join(parts) + bytes(5)


@pytest.mark.parametrize("content", [eps(), iptc()], ids=["EPS", "IPTC"])
@pytest.mark.parametrize("give", ["path", "bytes", "image", "list"])
def test_programs_are_not_run(content, give, tmp_path, monkeypatch):
    """Pillow would give them to Ghostscript."""
    run = []
    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: run.append(args) or args[0])
    path = tmp_path / "image.eps"
    path.write_bytes(content)
    image = PIL.Image.open(path)
    given = {"path": path, "bytes": content, "image": image, "list": [PIL.Image.new("RGB", (9, 9)), image]}[give]
    with pytest.raises(ValueError, match=r"(EPS files are programs|IPTC files embed a file of any format).*PNG"):
        read_image(given) if give == "bytes" else MplugOwlImageProcessor()(given)
    assert not run
    with contextlib.suppress(Exception):
        image.load()
    assert run or content != eps()  # not every Pillow opens an EPS file inside an IPTC file


@pytest.mark.parametrize("size", [{"height": 9}, {"height": 0, "width": 3}, {"shortest_edge": 30}, 0, 10**6], ids=str)
def test_a_size_that_does_not_fit_is_named(size):
    with pytest.raises(ValueError, match="size"):
        MplugOwlImageProcessor()(PIL.Image.new("RGB", (8, 8)), size=size)


@pytest.mark.parametrize("name", ["sise", "do_pad", "crop_size"])
def test_a_call_takes_no_other_arguments(name):
    with pytest.raises(TypeError, match=name):
        MplugOwlImageProcessor()(PIL.Image.new("RGB", (8, 8)), **{name: 9})


@pytest.mark.parametrize("setting", [{"do_center_crop": True}, {"do_pad": True}, {"do_convert_rgb": False}])
def test_settings_that_would_have_no_effect_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        MplugOwlImageProcessor(**setting)


def test_a_damaged_open_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(PNG[:2000])
    with pytest.raises(ValueError, match="An image is damaged: image file is truncated"):
        MplugOwlImageProcessor()(PIL.Image.open(tmp_path / "bad.png"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no/such/file.png", "no/such/file.png' cannot be read"),
        ([], "An empty list"),
        ([None], "An image is of type NoneType"),
        ({"a": 1}, "An image is of type dict"),
        (np.zeros((4, 4, 3), bool), "dtype bool"),
        (torch.zeros(3, 4, 4, device="meta"), "on meta cannot be converted"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((4,), np.uint8), r"shape \(4,\)"),
        (np.full((4, 4, 3), np.nan), "values from nan"),
        (np.full((4, 4, 3), -1.0), "values from -1.0"),
        (np.full((4, 4, 3), 300), "values from 300"),
    ],
)
def test_what_is_no_image_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        MplugOwlImageProcessor()(value)


@pytest.mark.parametrize(
    "settings",
    [
        {"resolution": 224, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]},
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 9, "width": 9}, "do_center_crop": True},
        {"size": {"height": 40, "width": 40}, "do_center_crop": True, "image_processor_type": "CLIPImageProcessor"},
    ],
)
def test_the_releases_crop_never_takes_effect(llama, tmp_path, settings):
    """Whatever a release says of sizes, the image goes straight to the model's image_size."""
    (tmp_path / "config.json").write_text((llama.folder / "original_checkpoint/config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((llama.folder / "original_checkpoint" / name).read_bytes())
    processor = AutoProcessor.from_pretrained(tmp_path).image_processor
    assert type(processor) is MplugOwlImageProcessor
    assert dict(processor.size) == {"height": 56, "width": 56}
    assert list(processor.image_mean) == settings.get("image_mean", [0.48145466, 0.4578275, 0.40821073])
    assert processor(PIL.Image.new("RGB", (30, 90)), return_tensors="pt")["pixel_values"].shape == (1, 3, 56, 56)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"do_normalize": False}, {"do_rescale": False}, {"do_rescale": False, "do_normalize": False},
        {"do_resize": False}, {"size": {"height": 60, "width": 30}}, {"resample": PIL.Image.Resampling.BILINEAR},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0], "rescale_factor": 0.5},
    ],
)  # fmt: skip
def test_the_table_of_colours_gives_the_librarys_values_to_the_last_bit(options):
    class Library(PilBackend):
        resample, size = MplugOwlImageProcessor.resample, MplugOwlImageProcessor.size
        image_mean, image_std = MplugOwlImageProcessor.image_mean, MplugOwlImageProcessor.image_std
        do_resize = do_rescale = do_normalize = do_convert_rgb = True

    noise = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3), dtype=np.uint8)
    expected = Library()(list(noise), return_tensors="pt", **options)["pixel_values"]
    actual = MplugOwlImageProcessor()(list(noise), return_tensors="pt", **options)["pixel_values"]
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


SIZES = [*np.random.default_rng(0).integers(1, 400, (300, 4)).tolist(), [90, 3000, 56, 56], [300, 900, 224, 224]]


def test_pixels_are_those_of_pillow_13_with_every_pillow():
    """Written by Pillow 13; run with an older one, this compares the two."""
    digest = hashlib.sha256()
    for number, (wide, high, width, height) in enumerate(SIZES):
        noise = np.random.default_rng(number).integers(0, 256, (high, wide, 3), dtype=np.uint8)
        box = None if number % 2 else (wide / 4, high / 8, wide, high)
        resized = resize(PIL.Image.fromarray(noise), (width, height), PIL.Image.Resampling.BICUBIC, box)
        digest.update(resized.tobytes())
        if PIL.__version__.startswith("13."):
            plain = PIL.Image.fromarray(noise).resize((width, height), PIL.Image.Resampling.BICUBIC, box)
            assert resized.tobytes() == plain.tobytes(), (wide, high, width, height)
    assert digest.hexdigest() == "d339e00358ffc7a2529463c3b2bbd17d705b2c83e6b14a32fb73b89c1cbd6519"


def test_the_smallest_images_are_known_as_base64(tmp_path):
    for name in ("GIF", "PNG", "WEBP", "JPEG"):
        file = io.BytesIO()
        PIL.Image.new("L" if name == "GIF" else "RGB", (1, 1), "white").save(file, name)
        assert_colour(base64.b64encode(file.getvalue()).decode(), (255, 255, 255))
    with pytest.raises(ValueError, match="No such file"):
        MplugOwlImageProcessor()("a/folder/with/a/long/name/and/then/a/long/name/of/a/file.png")
