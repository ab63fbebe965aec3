"""Frames of every kind of video: the right ones, from any file, prepared as images are; and what can go wrong."""

import base64
import json
import random
import sys
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
from clips import frame, number_of, rotate_clip, spoil_clip, write_clip
from fresh_interpreter import HIDDEN, in_fresh_interpreter
from hub import Hub
from transformers import AutoProcessor

from transformers_owl import MplugOwlImageProcessor, MplugOwlProcessor, MplugOwlVideoProcessor
from transformers_owl.mplug_owl import download_mplug_owl
from transformers_owl.mplug_owl.video_processing_mplug_owl import VideoFile, choose_frames, read_frames, visual_part


FILES = {
    "h264.mp4": {"codec": "libx264"},
    "h264-open-gop.mp4": {"codec": "libx264", "x264-params": "open-gop=1:bframes=3:scenecut=0"},
    "h265.mp4": {"codec": "libx265", "x265-params": "log-level=error"},
    "mpeg4-b-frames.mp4": {"codec": "mpeg4", "bf": "2"},
    "vp8.webm": {"codec": "libvpx", "auto-alt-ref": "1", "lag-in-frames": "10"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4-b-frames.avi": {"codec": "mpeg4", "bf": "2"},
    "h264-b-frames.avi": {"codec": "libx264", "bf": "2"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "h264.mkv": {"codec": "libx264"},
    "moves.gif": {"codec": "gif", "pixels": "rgb8"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(folder):
    return write_clip(folder / "clip.mp4", "libx264")


@pytest.fixture
def processor():
    return MplugOwlVideoProcessor(size={"height": 28, "width": 28})


def numbers(frames) -> list[int]:
    return [number_of(image) for image in frames]


@pytest.mark.parametrize("name", FILES)
def test_any_frames_of_any_file_are_those_of_decoding_it_whole(folder, name):
    path = write_clip(folder / name, **FILES[name])
    with av.open(path) as container:
        whole = [decoded.to_image() for decoded in container.decode(video=0)]
    file = VideoFile(path)
    assert len(file) == len(whole) == 24
    assert file.duration == pytest.approx(2.4, abs=0.01)
    assert file.fps == pytest.approx(10, abs=0.1)
    if name != "moves.gif":  # of few colours
        assert numbers(whole) == list(range(24))
    for seed in range(12):
        chosen = random.Random(seed).choices(range(24), k=1 + seed % 5)
        for number, image in zip(chosen, file.frames(chosen), strict=True):
            assert np.array_equal(np.asarray(image), np.asarray(whole[number])), number


def test_only_what_leads_to_the_frames_is_decoded(clip, folder):
    """Key frames stand at 0, 8 and 16: damage before or between the groups that are needed is not met."""
    behind = VideoFile(spoil_clip(clip, folder / "spoilt-begin.mp4", 0, 15))
    assert numbers(behind.frames([17, 23])) == [17, 23]
    with pytest.raises(ValueError, match=r"spoilt-begin\.mp4' cannot be read"):
        behind.frames([3])
    around = VideoFile(spoil_clip(clip, folder / "spoilt-middle.mp4", 8, 15))
    assert numbers(around.frames([17, 1, 4, 1])) == [17, 1, 4, 1]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 24, 100, 4097])
@pytest.mark.parametrize("num_frames", [1, 2, 4, 7, 64])
def test_frames_are_spread_as_the_original_spread_them(count, num_frames):
    segment = (count - 1) / num_frames
    expected = [int(segment / 2) + int(np.round(segment * index)) for index in range(num_frames)]
    assert choose_frames(count, None, None, num_frames=num_frames) == expected
    assert 0 <= min(expected) <= max(expected) < count


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, list(range(24))),
        ({"num_frames": 4}, [2, 8, 14, 19]),
        ({"num_frames": 30}, [round(23 / 30 * index) for index in range(30)]),
        ({"fps": 2}, [0, 5, 10, 15, 20]),
        ({"fps": 0.1}, [0]),
        ({"fps": 20}, [index // 2 for index in range(48)]),
        ({"timestamps": [1.0, 0.05, 2.4]}, [10, 0, 23]),
    ],
)
def test_ways_to_choose_frames(clip, sampling, expected):
    frames, metadata = read_frames(clip, **sampling)
    assert numbers(frames) == expected == metadata.frames_indices
    assert (metadata.total_num_frames, metadata.width, metadata.height) == (24, 64, 48)
    arrays = np.stack([frame(number) for number in range(24)])
    assert numbers(read_frames(arrays, video_fps=10, **sampling)[0]) == expected


def test_seconds_are_those_of_the_file_where_its_frame_rate_varies(folder):
    times = [0, 100, 200, 1000, 2000, 2100, 2200, 3000]
    path = write_clip(folder / "varies.mkv", "libx264", 8, times=times)
    assert VideoFile(path).times == pytest.approx([time / 1000 for time in times])
    assert numbers(read_frames(path, timestamps=[0.5, 1.0, 1.99, 2.15])[0]) == [2, 3, 3, 5]
    assert numbers(read_frames(path, fps=1)[0])[:4] == [0, 3, 4, 7]


def test_a_frame_is_rotated_as_the_file_says(clip, folder):
    upright = np.asarray(read_frames(clip, timestamps=[2.0])[0][0]).astype(int)
    turned = np.asarray(read_frames(rotate_clip(clip, folder / "turned.mp4"), timestamps=[2.0])[0][0])
    assert turned.shape == (64, 48, 3)
    assert np.abs(turned - np.rot90(upright, -1)).max() <= 2


def test_frames_become_pixels_as_images_do(clip, processor):
    images = MplugOwlImageProcessor(size={"height": 28, "width": 28})
    pixels = processor([clip, clip], num_frames=3, return_tensors="pt")["pixel_values_videos"]
    assert pixels.shape == (2, 3, 3, 28, 28)
    expected = images(read_frames(clip, num_frames=3)[0], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels[0], expected)
    assert torch.equal(pixels[1], expected)


def test_forms_of_one_video(clip, processor):
    arrays = np.stack([np.asarray(image) for image in read_frames(clip)[0]])
    images = [PIL.Image.fromarray(array) for array in arrays]
    expected = processor(clip, return_tensors="pt")["pixel_values_videos"]
    assert expected.shape == (1, 4, 3, 28, 28)
    data = base64.b64encode(Path(clip).read_bytes()).decode()
    tensor = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    forms = [
        Path(clip), [clip], [[clip]], f"data:video/mp4;base64,{data}", data, [Path(clip).read_bytes()], arrays,
        arrays[None], tensor, tensor / 255, list(arrays), images, [images], [[images]], tuple(images),
    ]  # fmt: skip
    for form in forms:
        assert torch.equal(processor(form, return_tensors="pt")["pixel_values_videos"], expected), type(form)
    every = processor([arrays, clip], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    assert every.shape[:2] == (2, 24)
    # As many images as frames are asked for are taken as they are.
    four = processor([images[:4]], return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(
        four, processor([images[:4]], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    )


def test_names_of_image_files_are_a_video(processor, tmp_path):
    names = []
    for number in (3, 9):
        names.append(str(tmp_path / f"{number}.png"))
        PIL.Image.fromarray(frame(number)).save(names[-1])
    pixels = processor([names], num_frames=2, return_tensors="pt")["pixel_values_videos"]
    expected = processor([[frame(3), frame(9)]], num_frames=2, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(pixels, expected)


def test_a_video_of_one_frame(folder, processor):
    path = write_clip(folder / "one.webm", "libvpx", 1)
    pixels = processor(path, return_tensors="pt")["pixel_values_videos"]
    assert pixels.shape == (1, 4, 3, 28, 28)
    assert all(torch.equal(pixels[0, 0], other) for other in pixels[0])
    assert processor(path, fps=1, return_tensors="pt")["pixel_values_videos"].shape == (1, 1, 3, 28, 28)


def test_metadata_and_moments_of_each_video(clip, processor):
    moments = [[0.0, 1.0], [1.5, 2.0]]
    read = processor([clip, clip], timestamps=moments, return_metadata=True, return_tensors="pt")
    assert [metadata.frames_indices for metadata in read["video_metadata"]] == [[0, 10], [15, 20]]
    assert read["video_metadata"][0].timestamps == pytest.approx(moments[0])
    assert list(processor.sample_frames(read["video_metadata"][0], fps=1)) == [0, 10, 20]


def test_urls(clip, processor, monkeypatch):
    hub = Hub()
    hub.repositories["owner/clips"] = {"clip.mp4": Path(clip).read_bytes()}
    url = f"{hub.endpoint}/owner/clips/resolve/main/clip.mp4"
    try:
        with pytest.raises(ValueError, match="internal address"):
            processor(url)
        monkeypatch.setenv("TRANSFORMERS_OWL_ALLOW_INTERNAL_URLS", "1")
        monkeypatch.setattr(download_mplug_owl, "DOWNLOAD_BYTES", 10)  # of images
        fetched = processor(url, return_tensors="pt")["pixel_values_videos"]
        assert torch.equal(fetched, processor(clip, return_tensors="pt")["pixel_values_videos"])
        monkeypatch.setattr(download_mplug_owl, "VIDEO_BYTES", 10)
        with pytest.raises(ValueError, match="larger than"):
            processor(url)
    finally:
        hub.close()


def test_damaged_files_are_named(clip, folder, processor):
    content = Path(clip).read_bytes()
    start = content.index(b"mdat") + 4
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n" + clip.encode() + b"\n#EXT-X-ENDLIST\n"
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    damaged = {
        "empty.mp4": b"",
        "noise.mp4": random.Random(0).randbytes(2000),
        "cut.mp4": content[: len(content) // 2],
        "zeros.mp4": content[:start] + bytes(len(content) - start),
        "text.mp4": b"hello",
        "list.m3u8": playlist,
        "sound.mp4": (folder / "sound.mp4").read_bytes(),
    }
    for name, data in damaged.items():
        (folder / f"bad-{name}").write_bytes(data)
        with pytest.raises(ValueError, match=f"The video '.*bad-{name}' cannot be read: .+"):
            processor(str(folder / f"bad-{name}"))
    for name, message in (("none.mp4", "No such file"), (".", "it is not a file")):
        with pytest.raises(ValueError, match=f"cannot be read: .*{message}"):
            processor(str(folder / name))


@pytest.mark.parametrize(
    ("videos", "options", "message"),
    [
        (None, {}, "A video is of type NoneType"),
        (5, {}, "A video is of type int"),
        ([], {}, "An empty list of videos"),
        ([[]], {}, "An empty list of videos"),
        ("clip", {"num_frames": 0}, "num_frames is 0, but must be an integer from 1 to 4096"),
        ("clip", {"num_frames": 10**9}, "num_frames is 1000000000"),
        ("clip", {"num_frames": "4"}, "num_frames is '4'"),
        ("clip", {"fps": -1}, "fps is -1"),
        ("clip", {"fps": 1e9}, "fps is 1000000000.0"),
        ("clip", {"timestamps": [9.0]}, r"timestamps is \[9.0\], but must be a list of seconds from 0 to 2.400"),
        ("clip", {"timestamps": []}, r"timestamps is \[\]"),
        ("clip", {"timestamps": [[1.0], [2.0]]}, "2 lists for 1 videos"),
        ("clip", {"fps": 1, "num_frames": 4}, "num_frames and fps are given"),
        ("clip", {"fps": 1, "do_sample_frames": False}, "`do_sample_frames` is False"),
        ("clip", {"size": 10**6}, "`size` is .* from 1 to 4096"),
        (np.zeros((4, 9, 9, 3), np.uint8), {"fps": 1}, "frame rate of an array"),
        (np.zeros((4, 9, 9, 3), np.uint8), {"video_metadata": [{"fps": 1}] * 2}, "2 entries for 1 videos"),
        (np.zeros((4, 9, 9, 3), np.uint8), {"video_metadata": {"fps": 0}}, "is 0, but must be a positive number"),
        (np.zeros((4, 9, 9, 7), np.uint8), {}, "with 1, 3 or 4 channels"),
        (np.full((4, 9, 9, 3), -1.0), {}, "values from -1.0"),
        (np.zeros((0, 9, 9, 3), np.uint8), {}, "array of shape"),
    ],
)  # fmt: skip
def test_mistakes_are_named(clip, processor, videos, options, message):
    with pytest.raises(ValueError, match=message):
        processor(clip if isinstance(videos, str) else videos, **options)


def test_a_call_takes_no_other_arguments(clip, processor):
    with pytest.raises(TypeError, match="frames"):
        processor(clip, frames=3)


def test_videos_of_a_batch_have_equally_many_frames(clip, folder, processor):
    short = write_clip(folder / "short.webm", "libvpx", 11)
    with pytest.raises(ValueError, match=r"The videos give \[3, 2\] frames"):
        processor([clip, short], fps=1, return_tensors="pt")
    assert [len(video) for video in processor([clip, short], fps=1)["pixel_values_videos"]] == [3, 2]


@pytest.mark.parametrize(
    ("source", "kind", "kind_for_videos"),
    [
        ("a.mp4", "video", "video"), ("https://x.org/A.WEBM?x=1", "video", "video"), ("a.gif", "image", "video"),
        ("a.jpg", "image", "image"), ("a", "image", "image"), ([PIL.Image.new("RGB", (9, 9))], "video", "video"),
        (np.zeros((4, 9, 9, 3)), "video", "video"), (np.zeros((9, 9, 3)), "image", "image"),
        ("data:video/mp4;base64,AAAA", "video", "video"),
    ],
)  # fmt: skip
def test_a_file_is_an_image_or_a_video_by_its_name(source, kind, kind_for_videos):
    assert visual_part(source)["type"] == kind
    assert visual_part(source, sees_videos=True)["type"] == kind_for_videos


def test_folders_bring_their_video_processor(llama, llama_processor, tmp_path, clip):
    from transformers import AutoVideoProcessor

    assert AutoVideoProcessor.from_pretrained(llama.checkpoint).size == {"height": 56, "width": 56}
    llama_processor.video_processor.num_frames = 3
    try:
        llama_processor.save_pretrained(tmp_path)
    finally:
        del llama_processor.video_processor.num_frames
    loaded = AutoVideoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, MplugOwlVideoProcessor)
    assert loaded(clip, return_tensors="pt")["pixel_values_videos"].shape == (1, 3, 3, 56, 56)
    assert AutoProcessor.from_pretrained(tmp_path).video_processor.num_frames == 3
    loaded.save_pretrained(tmp_path / "alone")
    assert MplugOwlVideoProcessor.from_pretrained(tmp_path / "alone").to_dict() == loaded.to_dict()
    # A folder that was saved without one takes the images' settings.
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    del settings["video_processor"]
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    assert MplugOwlProcessor.from_pretrained(tmp_path).video_processor.size == {"height": 56, "width": 56}


def test_a_saved_folder_needs_neither_this_package_nor_torchvision(llama_processor, tmp_path, clip):
    llama_processor.save_pretrained(tmp_path)
    code = f"""
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
inputs = processor(text="<|video|>", videos=[{clip!r}], num_frames=5, return_tensors="pt")
print(tuple(inputs["pixel_values_videos"].shape))
"""
    hidden = HIDDEN + '; sys.modules["torchvision"] = None'
    assert in_fresh_interpreter(hidden, code) == "(1, 5, 3, 56, 56)\n"


def test_a_missing_decoder_is_named(clip, processor, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="decoded by PyAV"):
        processor(clip)
    assert processor(np.zeros((4, 9, 9, 3), np.uint8), return_tensors="pt")["pixel_values_videos"].shape[1] == 4


@pytest.mark.parametrize(("frames", "kind"), [(1, "image"), (2, "video")])
def test_a_gif_of_one_frame_is_an_image_for_every_model(tmp_path, frames, kind):
    colours = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    colours[0].save(tmp_path / "a.gif", save_all=True, append_images=colours[1:frames])
    content = (tmp_path / "a.gif").read_bytes()
    assert visual_part(str(tmp_path / "a.gif"), sees_videos=True)["type"] == kind
    assert visual_part(content, sees_videos=True)["type"] == kind
    assert visual_part(content)["type"] == "image"
    assert visual_part(b"no image")["type"] == "video"
