"""Every kind of collection gives each of its images and videos once, and what cannot be read with its reason."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from clips import write_clip
from shards import cut, png, write_tar

from transformers_owl import MINIATURE
from transformers_owl.collections import inputs
from transformers_owl.collections.inputs import Membership, find_parts
from transformers_owl.collections.reading import Item, blocks, decoded, decoder_of, items
from transformers_owl.demo.caption import SAMPLES


COUNT = 10


def write_parquet(path: Path, values) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(values))), "image": values}), path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Images of the levels 0 to 9, some in a folder below, and a file of another kind."""
    (tmp_path / "all/below").mkdir(parents=True)
    (tmp_path / "all/notes.md").write_text("no image")
    for level in range(COUNT):
        (tmp_path / "all" / ("below" if level > 6 else "") / f"{level}.png").write_bytes(png(level))
    return tmp_path / "all"


def tars(folder: Path) -> list[str]:
    for number in range(2):
        write_tar(folder.parent / f"{number:05}.tar", range(5 * number, 5 * number + 5))
    return [str(folder.parent / "{00000..00001}.tar")]


def names_in(file: str):
    def write(folder: Path) -> list[str]:
        path = folder.parent / file
        names = [str(path) for path in folder.rglob("*.png")]
        if file.endswith(".txt"):
            path.write_text("\n".join(["", *names, ""]))
        elif file.endswith(".csv"):
            path.write_text("file_name,text\n" + "".join(f"{name},a\n" for name in names))
        elif file.endswith(".json"):
            path.write_text(json.dumps([{"image": name} for name in names]))
        else:
            path.write_text("".join(json.dumps({"image": name, "answer": "before"}) + "\n" for name in names))
        return [str(path)]

    return write


def rows_of_tars(folder: Path) -> list[str]:
    """Earlier rows about some of the images in shards, and one file."""
    (pattern,) = tars(folder)
    shards = [pattern.replace("{00000..00001}", f"{number:05}") for number in range(2)]
    names = [f"{shards[level // 5]}, {level:03}" for level in range(1, COUNT)] + [str(folder / "0.png")]
    path = folder.parent / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    return [str(path)]


def saved_dataset(folder: Path) -> list[str]:
    rows = datasets.Dataset.from_dict({"image": [str(path) for path in folder.rglob("*.png")]})
    rows.cast_column("image", datasets.Image()).save_to_disk(folder.parent / "saved")
    return [str(folder.parent / "saved")]


def parquet_of(kind: str):
    values = {
        "bytes": lambda folder: [png(level) for level in range(COUNT)],
        "structs": lambda folder: [{"bytes": png(level), "path": None} for level in range(COUNT)],
        "names": lambda folder: [str(path) for path in folder.rglob("*.png")],
    }[kind]
    return lambda folder: [write_parquet(folder.parent / "rows.parquet", values(folder))]


KINDS = {
    "files": lambda folder: [str(path) for path in folder.rglob("*.png")],
    "files twice": lambda folder: [str(path) for path in folder.rglob("*.png")] * 2,
    "a folder": lambda folder: [str(folder)],
    "patterns": lambda folder: [str(folder / "*.png"), str(folder / "below/*.png")],
    "a deep pattern": lambda folder: [str(folder / "**/*.png")],
    "a pattern of folders": lambda folder: [str(folder.parent / "al*")],
    "shards": tars,
    "addresses of shards": lambda folder: [f"file://{tars(folder)[0]}"],
    "a pattern of addresses": lambda folder: [f"file://{Path(tars(folder)[0]).parent}/*.tar"],
    "names in .txt": names_in("names.txt"),
    "names in .csv": names_in("names.csv"),
    "names in .json": names_in("names.json"),
    "earlier rows": names_in("rows.jsonl"),
    "earlier rows of shards": rows_of_tars,
    "Parquet of bytes": parquet_of("bytes"),
    "Parquet of structs": parquet_of("structs"),
    "Parquet of names": parquet_of("names"),
    "a saved data set": saved_dataset,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_there_once(kind, folder):
    parts = find_parts(KINDS[kind](folder))
    decode = decoder_of(str(MINIATURE))
    found = [item for part in parts for item in items(part)]
    shown = [decoded(item, decode) for item in found]
    assert sorted(visual["image"].getpixel((3, 3))[0] for visual in shown) == list(range(COUNT))
    assert {visual["image"].size for visual in shown} == {(96, 96)}
    members = Membership(parts)
    assert all(item.name in members for item in found)
    assert not any(name in members for name in ("other.png", "other.tar, 001"))
    # Names lead to the same images, but those of rows in a saved data set.
    if kind != "a saved data set":
        again = [item for part in find_parts([item.name for item in found]) for item in items(part)]
        assert {item.name: item.content for item in again} == {item.name: item.content for item in found}
    assert len({part.key for part in parts}) == len(parts)


def test_a_shard_and_earlier_rows_of_it_are_read_once(tmp_path):
    shard = write_tar(tmp_path / "0.tar", range(COUNT))
    (part,) = find_parts([f"{shard}, 001", shard, f"{shard}, 002"])
    assert len(list(items(part))) == COUNT and part.only is None


def test_names_come_from_the_standard_input(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(str(path) for path in folder.rglob("*.png"))))
    assert sum(len(part.files) for part in find_parts(["-"])) == COUNT


def test_a_name_in_a_list_keeps_its_odd_characters(tmp_path):
    """Only the end of a line ends a name."""
    odd = tmp_path / "a\u2028b\x0cc.png"
    odd.write_bytes(SAMPLES[0].read_bytes())
    (tmp_path / "names.txt").write_text(f"{odd}\r\n", newline="")
    (part,) = find_parts([str(tmp_path / "names.txt")])
    assert part.files == (str(odd),)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7])
def test_blocks_hold_every_item_once_and_say_which_is_the_last(count, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_owl.collections.reading.BLOCK", 3)
    (part,) = find_parts([write_tar(tmp_path / "0.tar", range(count))])
    found = list(blocks(part))
    assert [start for start, _, _ in found] == list(range(0, count, 3))
    assert [is_last for *_, is_last in found] == [False] * (len(found) - 1) + [True]
    assert [item for _, block, _ in found for item in block] == list(items(part))


def test_files_are_parts_of_a_fixed_size(folder, monkeypatch):
    monkeypatch.setattr(inputs, "BLOCK", 4)
    assert [len(part.files) for part in find_parts([str(folder)])] == [4, 4, 2]


def other_members(path: Path) -> str:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("000.txt")
        archive.addfile(member, io.BytesIO(b""))
    return str(path)


BROKEN = {
    "a cut shard": (lambda folder: cut(folder / "0.tar"), "broken shard"),
    "no shard": (lambda folder: f"file://{folder}/gone.tar", "broken shard"),
    "a shard that is none": (lambda folder: write_file(folder / "0.tar", b"none" * 999), "broken shard"),
    "a shard without images": (lambda folder: other_members(folder / "0.tar"), "there are only txt"),
    "Parquet that is none": (lambda folder: write_file(folder / "0.parquet", b"none"), "broken Parquet file"),
    "Parquet of nothing": (lambda folder: write_parquet(folder / "0.parquet", [None, b""]), "the row has no image"),
    "Parquet of other columns": (lambda folder: other_column(folder / "0.parquet"), "no column 'image'"),
    "a damaged image": (lambda folder: write_file(folder / "0.png", b"none"), "0.png' cannot be read"),
    "an image of a store that is gone": (lambda folder: f"file://{folder}/gone.png", "gone.png"),
}


def write_file(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def other_column(path: Path) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"picture": [png(1)]}), path)
    return str(path)


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_says_why(case, tmp_path):
    write, reason = BROKEN[case]
    (part,) = find_parts([write(tmp_path)])
    *good, last = [decoded(item, decoder_of(str(MINIATURE))) for item in items(part)]
    assert isinstance(last, str) and reason in last and "\n" not in last
    assert all(isinstance(each, dict) for each in good) or case == "Parquet of nothing"
    if case == "a cut shard":
        assert good


def test_bytes_of_a_video_are_shown_as_the_file_is(tmp_path):
    decode = decoder_of(str(MINIATURE), num_frames=3)
    clip = write_clip(tmp_path / "a.mp4", "mpeg4")
    as_file = decoded(Item(clip, clip), decode)
    as_bytes = decoded(Item("0.tar, a", Path(clip).read_bytes(), is_video=True), decode)
    assert as_file["type"] == as_bytes["type"] == "video"
    assert len(as_file["video"]) == 3
    assert [frame.tobytes() for frame in as_file["video"]] == [frame.tobytes() for frame in as_bytes["video"]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "The list of images and videos is empty"),
        (["gone.png", "gone.tar"], "No such file: gone.png, gone.tar"),
        (["http.txt"], "No such file: http.txt"),
        (["rows.jsonl"], "but must have `image` or `file_name`"),
    ],
)
def test_mistakes_are_named(names, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"answer": "a"}\n')
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_parts(names)
