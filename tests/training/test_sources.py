"""Every form of image-caption data gives the same samples; what is wrong in a file is named with file and row."""

import functools
import http.server
import io
import json
import threading

import PIL.Image
import pytest

from transformers_owl.training import BadSampleError, Rows, Shards
from transformers_owl.training.mixture import RowGroup


def captions(rows) -> list[tuple[int, str, str]]:
    """Grey level, question and caption of every sample."""
    found = []
    for number in range(len(rows)):
        question, answer = rows[number]["messages"]
        visual, *texts = question["content"]
        image = PIL.Image.open(visual["path"]) if "path" in visual else visual["image"]
        found.append((image.getpixel((0, 0))[0], *[part["text"] for part in texts], answer["content"]))
    return found


def test_csv_and_jsonl_beside_their_images(files):
    jsonl = files.captions([1, 2])
    (files.folder / "captions.csv").write_text('file_name,text\n1.png,"grey, 1"\n2.png,grey 2\n')
    assert captions(Rows(**jsonl)) == [(1, "grey 1"), (2, "grey 2")]
    assert captions(Rows("captions", str(files.folder / "captions.csv"))) == [(1, "grey, 1"), (2, "grey 2")]
    asked = Rows(**jsonl, prompt="What is it?")
    assert captions(asked) == [(1, "What is it?", "grey 1"), (2, "What is it?", "grey 2")]
    assert asked[0]["source"] == f"{files.folder}/captions.jsonl, row 1"


def test_captions_of_coco(files):
    """Several captions of an image are several samples."""
    files.captions([1, 2])
    content = {
        "images": [{"id": 7, "file_name": "1.png"}, {"id": 8, "file_name": "2.png"}],
        "annotations": [
            {"image_id": 8, "caption": "two"}, {"image_id": 7, "caption": "one"}, {"image_id": 8, "caption": "zwei "}
        ],
    }  # fmt: skip
    path = files.folder / "annotations.json"
    path.write_text(json.dumps(content))
    assert captions(Rows("coco", str(path), images=str(files.folder))) == [(2, "two"), (1, "one"), (2, "zwei")]
    path.write_text(json.dumps({"images": [], "annotations": [{"image_id": 7, "caption": "x"}]}))
    with pytest.raises(ValueError, match=r"annotations\.json has no captions in MSCOCO's format: 7 is missing"):
        Rows("coco", str(path))


def test_datasets_from_disk_and_by_name(files, tmp_path):
    import datasets

    table = {"picture": [files.image(number) for number in (3, 4)], "caption": ["grey 3", "grey 4"]}
    data = datasets.Dataset.from_dict(table).cast_column("picture", datasets.Image())
    data.save_to_disk(tmp_path / "saved")
    options = {"image_column": "picture", "text_column": "caption"}
    assert captions(Rows("dataset", str(tmp_path / "saved"), **options)) == [(3, "grey 3"), (4, "grey 4")]
    (tmp_path / "repository" / "data").mkdir(parents=True)
    data.to_parquet(tmp_path / "repository" / "data" / "validation-00000.parquet")
    rows = Rows("dataset", str(tmp_path / "repository"), split="validation", **options)
    assert captions(rows) == [(3, "grey 3"), (4, "grey 4")]
    for pattern in ("validation-00000.parquet", "*.parquet"):
        rows = Rows("dataset", str(tmp_path / "repository" / "data" / pattern), **options)
        assert captions(rows) == [(3, "grey 3"), (4, "grey 4")]
        assert RowGroup([rows]).paths() == [str(tmp_path / "repository" / "data" / "validation-00000.parquet")]
    with pytest.raises(
        ValueError, match=r"has the columns \['picture', 'caption'\], but must have \['image', 'text'\]"
    ):
        Rows("dataset", str(tmp_path / "saved"))


def test_a_damaged_image_of_a_dataset_is_named(tmp_path):
    import datasets

    table = {"image": [{"bytes": b"noise", "path": None}], "text": ["x"]}
    datasets.Dataset.from_dict(table).cast_column("image", datasets.Image(decode=False)).save_to_disk(tmp_path / "d")
    with pytest.raises(BadSampleError, match=r"d, row 1: unreadable image: "):
        Rows("dataset", str(tmp_path / "d"))[0]


@pytest.fixture
def server(files):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(files.folder))
    handler.log_message = None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shards_come_from_files_and_from_urls(files, server):
    files.shard("00000.tar", [1, 2])
    files.shard("00001.tar", [3])
    for start in (str(files.folder), server):
        shards = Shards(f"{start}/{{00000..00001}}.tar", prompt="Hm?")
        assert shards.shards == [f"{start}/00000.tar", f"{start}/00001.tar"]
        samples = [shards.sample(item) for shard in shards.shards for item in shards.read(shard)]
        assert captions(samples) == [(1, "Hm?", "grey 1"), (2, "Hm?", "grey 2"), (3, "Hm?", "grey 3")]
        assert samples[2]["source"] == f"{start}/00001.tar, 000000003"


def test_a_shard_that_is_not_there_is_named(files, server):
    for path in (f"{files.folder}/gone.tar", f"{server}/gone.tar"):
        shards = Shards(path)
        (item,) = shards.read(path)
        with pytest.raises(BadSampleError, match=r"gone\.tar: broken shard: "):
            shards.sample(item)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"jpg": b"noise", "txt": b"x"}, "a, 7: unreadable image"),
        ({"txt": b"x"}, "a, 7: malformed row: an image or video and .txt are needed, but there are only txt"),
        ({"png": None, "caption": b"x"}, "a, 7: malformed row: .* only png, caption"),
        ({"png": None, "txt": b"\xff\xfe"}, "a, 7: malformed row: "),
        ({"png": None, "txt": b" \n"}, "a, 7: empty text"),
    ],
)
def test_bad_samples_of_a_shard_are_named(files, members, message):
    image = io.BytesIO()
    files.image(1).save(image, "png")
    content = {suffix: image.getvalue() if data is None else data for suffix, data in members.items()}
    with pytest.raises(BadSampleError, match=message):
        Shards("a").sample({"__url__": "a", "__key__": "7", **content})


def test_an_empty_file_has_no_rows(tmp_path):
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_text("\n")
        assert len(Rows("captions", str(tmp_path / name))) == 0


def test_a_row_number_outside_is_an_index_error(files):
    rows = Rows(**files.captions([1]))
    assert len(list(rows)) == 1
    for number in (-1, 1):
        with pytest.raises(IndexError, match=f"Row {number} is out of range for 1 rows"):
            rows[number]
