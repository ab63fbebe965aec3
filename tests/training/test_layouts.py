"""Rows in the layouts of other trainers give their images to the batch, or are bad samples; so is all else."""

import base64
import codecs
import gzip
import io
import json

import pytest
import torch
from conftest import SYSTEM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformers_owl.mplug_owl.image_processing_mplug_owl import read_image
from transformers_owl.training import BadSampleError, ConversationCollator, Rows, Shards
from transformers_owl.training.mixture import Group, encode, open_visuals
from transformers_owl.training.readers import READERS


ASKED = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Grey."}]
ANSWER = {"role": "assistant", "content": "Grey."}


def said(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER]}


TEXT = {"type": "text", "text": "What?"}
# Each with one image; FILE is its path, URL the same as a data: URL.
LAYOUTS = {
    "llama-factory and ms-swift": ("messages", said_string := {
        "messages": [{"role": "user", "content": "<image>What?"}, ANSWER], "images": ["FILE"]}),
    "with a dictionary": ("messages", {**said_string, "images": [{"path": "FILE", "bytes": None}]}),
    "with an empty list of videos": ("messages", {**said_string, "videos": []}),
    "trl": ("messages", {**said({"type": "image"}, TEXT), "images": ["FILE"]}),
    "openai": ("messages", said({"type": "image_url", "image_url": {"url": "URL"}}, TEXT)),
    "openai, a string": ("messages", said({"type": "image_url", "image_url": "URL"}, TEXT)),
    "a file as an address": ("messages", said({"type": "image_url", "image_url": {"url": "file://FILE"}}, TEXT)),
    "arrow": ("messages", said({"type": "image", "url": None, "path": "FILE", "text": None}, TEXT)),
    "qwen": ("messages", said({"type": "image", "image": "FILE"}, TEXT)),
    "sharegpt, image": ("sharegpt", {"conversations": ASKED, "image": "FILE"}),
    "sharegpt, images": ("sharegpt", {"conversations": ASKED, "images": ["FILE"]}),
    "llava, a URL": ("llava", {"conversations": ASKED, "image": "URL"}),
    "llava, images": ("llava", {"conversations": ASKED, "images": ["FILE"]}),
    "alpaca": ("alpaca", {"instruction": "<image>", "input": "What?", "output": "Grey.", "images": ["FILE"]}),
    "original": ("original", {"text": f"{SYSTEM}\nHuman: <image>\nHuman: What?\nAI: Grey.", "image": ["FILE"]}),
}  # fmt: skip
UNREAD = {
    "captions": {"file_name": "FILE", "text": "Grey.", "image": "FILE"},
    "webvid": {"videoid": "1", "name": "Grey.", "image_path": "FILE"},
    "alpaca": {"instruction": "What?", "output": "Grey.", "image_path": "FILE"},
    "sharegpt": {"conversations": [{**ASKED[0], "value": "What?", "image": "FILE"}, ASKED[1]]},
    "baize": {"input": "[|Human|] What? [|AI|] Grey.", "images": ["FILE"]},
    "llava": {"conversations": [{"from": "human", "value": "What?"}, ASKED[1]], "img": {"bytes": "x", "path": None}},
    "original": {"text": f"{SYSTEM}\nHuman: What?\nAI: Grey.", "photos": ["FILE"]},
    "messages": {"messages": [{"role": "user", "content": "What?", "images": ["FILE"]}, ANSWER]},
}  # fmt: skip


def with_images(count: int, given: int) -> dict[str, dict]:
    """Rows with so many placeholders, and so many images."""
    question = "<image>" * count + "What?"
    turns = [{"from": "human", "value": question}, ASKED[1]]
    images = {"images": ["FILE"] * given} if given else {}
    return {
        "alpaca": {"instruction": question, "output": "Grey.", **images},
        "sharegpt": {"conversations": turns, **images},
        "llava": {"conversations": turns, **images},
        "original": {"text": f"{SYSTEM}\nHuman: {question}\nAI: Grey.", **images},
        "messages": {"messages": [{"role": "user", "content": question}, ANSWER], **images},
    }


def read(form, row, files, processor, **options):
    """The first row of a file as the collator makes it, with its image's grey level."""
    files.image(7).save(files.folder / "7.png")
    content = (files.folder / "7.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    path = files.folder / "rows.jsonl"
    path.write_text(json.dumps(row).replace("FILE", str(files.folder / "7.png")).replace("URL", url))
    collator = ConversationCollator(processor)
    sample = Rows(form, str(path), **options)[0]
    return encode(open_visuals(sample, collator), sample["source"], collator)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_its_image_to_the_batch(layout, files, llama_processor):
    row = read(*LAYOUTS[layout], files, llama_processor)
    expected = read("original", LAYOUTS["original"][1], files, llama_processor)
    assert [image.getpixel((0, 0)) for image in row["image"]] == [(7, 7, 7)]
    assert row["input_ids"].tolist() == expected["input_ids"].tolist()
    assert row["labels"].tolist() == expected["labels"].tolist()


@pytest.mark.parametrize("form", READERS)
def test_an_image_that_nobody_reads_is_a_bad_sample(form, files, llama_processor):
    with pytest.raises(BadSampleError, match=r"rows\.jsonl, row 1: malformed row: .*has images or videos in"):
        read(form, UNREAD[form], files, llama_processor)


@pytest.mark.parametrize("form", with_images(0, 0))
@pytest.mark.parametrize("given", range(3))
@pytest.mark.parametrize("count", range(3))
def test_placeholders_and_images_match_or_the_row_is_bad(form, count, given, files, llama_processor):
    row = with_images(count, given)[form]
    if count == given:
        assert len(read(form, row, files, llama_processor)["image"]) == count
    else:
        with pytest.raises(BadSampleError, match=r"more <image> than|there is no <image>"):
            read(form, row, files, llama_processor)


def test_images_of_parts_and_of_the_row_are_counted_together(files, llama_processor):
    row = {**said({"type": "image", "path": "FILE"}, {"type": "image"}, TEXT), "images": ["FILE"]}
    assert len(read("messages", row, files, llama_processor)["image"]) == 2
    with pytest.raises(BadSampleError, match=r"there is no <image> for the image 7\.png"):
        read("messages", {**said({"type": "image", "path": "FILE"}, TEXT), "images": ["FILE"]}, files, llama_processor)


@pytest.mark.parametrize("line", ["What is <image> this?", "<image> and <image>?", "See <image>", "<image>?"])
def test_an_image_within_a_line_has_the_ids_of_that_line(line, files, llama_processor):
    """The original cut the whole prompt at its placeholders; the line is no reason to begin another."""
    count = line.count("<image>")
    text = f"{SYSTEM}\nHuman: {line}\nAI: "
    row = read("original", {"text": text + "Grey.", "image": ["FILE"] * count}, files, llama_processor)
    images = [files.image(7)] * count
    prompt = llama_processor(text=[text], images=images, return_tensors="pt")["input_ids"][0]
    first = int((row["labels"] != -100).int().argmax())
    assert row["input_ids"][:first].tolist() == prompt.tolist()


def test_system_messages_and_histories_are_read(files, llama_processor):
    turns = [{"from": "system", "value": "Be brief."}, {"from": "gpt", "value": "x"}, *ASKED]
    rows = (
        ("sharegpt", {"conversations": turns, "image": "FILE"}),
        ("sharegpt", {"conversations": ASKED, "system": "Be brief.", "image": "FILE"}),
        ("alpaca", {"instruction": "<image>What?", "output": "Grey.", "system": "Be brief.", "images": ["FILE"]}),
        ("original", {"text": "Be brief.\nHuman: <image>\nHuman: What?\nAI: Grey.", "image": ["FILE"]}),
    )  # fmt: skip
    ids = [read(form, row, files, llama_processor)["input_ids"].tolist() for form, row in rows]
    assert all(each == ids[-1] for each in ids)
    row = {"instruction": "c", "output": "d", "history": [["a", "b"]]}
    chat = {
        "conversations": [{"from": who, "value": text} for who, text in zip(["human", "gpt"] * 2, "abcd", strict=True)]
    }
    first, second = (read(*each, files, llama_processor) for each in (("alpaca", row), ("sharegpt", chat)))
    assert torch.equal(first["labels"], second["labels"])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    | st.sampled_from(["\ud800", "x\udfff", "<image>", "a" * 5000, "\0", "", "x.png", "user", "human", "http://["]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["from", "value", "role", "content", "type", "text", "path", "url", "image"]), inner
    ),
    max_leaves=8,
)  # fmt: skip
FIELDS = ["file_name", "text", "videoid", "name", "instruction", "input", "output", "history", "system", "image"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(form=st.sampled_from(sorted(READERS)), data=st.data())
def test_whatever_a_row_holds_is_a_sample_or_a_bad_one(form, data, llama_processor, tmp_path):
    names = [*FIELDS, "conversations", "messages", "images", "video"]
    row = data.draw(values | st.dictionaries(st.sampled_from(names), values, max_size=5))
    spoilt = data.draw(values)
    whole = {
        "alpaca": {"instruction": "a", "output": spoilt}, "captions": {"file_name": spoilt, "text": "a"},
        "sharegpt": {"conversations": [{"from": "human", "value": spoilt}, {"from": "gpt", "value": "b"}]},
        "messages": {"messages": [{"role": "user", "content": spoilt}, ANSWER]},
    }.get(form, {})  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(whole))
    rows, collator = Rows(form, str(path)), ConversationCollator(llama_processor)
    for number in range(len(rows)):
        try:
            sample = rows[number]
            encode(open_visuals(sample, collator), sample["source"], collator)
        except BadSampleError as error:
            assert error.source == f"{path}, row {number + 1}"


@pytest.mark.parametrize("form", ["alpaca", "sharegpt", "baize", "llava", "original", "messages", "captions"])
@pytest.mark.parametrize("spoilt", ["\ud800", "a \udc80 b"])
def test_half_a_character_is_a_bad_sample(form, spoilt, files, llama_processor):
    rows = {
        "baize": {"input": f"[|Human|] {spoilt} [|AI|] Grey."}, "captions": {"file_name": "FILE", "text": spoilt},
        "alpaca": {"instruction": "What?", "output": spoilt},
        "sharegpt": {"conversations": [ASKED[0] | {"value": spoilt}, ASKED[1]]},
        "llava": {"conversations": [ASKED[0] | {"value": "What?"}, ASKED[1] | {"value": spoilt}]},
        "original": {"text": f"{SYSTEM}\nHuman: {spoilt}\nAI: Grey."}, "messages": said({**TEXT, "text": spoilt}),
    }  # fmt: skip
    with pytest.raises(BadSampleError, match=r"row 1: malformed row: a lone surrogate"):
        read(form, rows[form], files, llama_processor)


TABLE = 'file_name;text\n\n1.png;"grey; 1, ä"\n2.png;"two\nlines"\n3.png;grey 3\n'
FORMS = {
    "plain": str.encode,
    "excel": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "gzip": lambda text: gzip.compress(text.encode()),
}


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize("separator", ";,\t")
def test_tables_of_spreadsheets(packed, separator, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        FORMS[packed](TABLE.replace("file_name;", f"file_name{separator}").replace("png;", f"png{separator}"))
    )
    rows = Rows("captions", str(path))
    found = [(sample["source"].rpartition(" ")[2], sample["messages"][1]["content"]) for sample in rows]
    middle = "two\r\nlines" if packed == "excel" else "two\nlines"
    assert found == [("3", "grey; 1, ä"), ("4", middle), ("6", "grey 3")]


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "b.jsonl.gz"])
def test_json_in_every_encoding(packed, name, tmp_path):
    rows = [{"instruction": "ä\u2028b", "output": str(number)} for number in range(3)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = f"[{','.join(lines)}]" if name == "a.json" else "\n\n".join(lines) + "\n \n"
    (tmp_path / name).write_bytes(FORMS[packed](text))
    samples = list(Rows("alpaca", str(tmp_path / name)))
    assert [sample["messages"][1]["content"] for sample in samples] == ["0", "1", "2"]
    numbers = [int(sample["source"].rpartition(" ")[2]) for sample in samples]
    assert numbers == ([1, 2, 3] if name == "a.json" else [1, 3, 5])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,text\n1.png,gr\xfcn\n".encode("latin-1"), r"a\.csv, row 2: b'\\xfc' is not text in utf-8"),
        (gzip.compress(b"file_name,text\n1.png,x" * 99, mtime=0)[:-9], r"a\.csv cannot be decompressed by gzip"),
    ],
)  # fmt: skip
def test_other_encodings_are_refused_by_file_and_row(content, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Rows("captions", str(tmp_path / "a.csv"))


def test_columns_by_other_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("image,caption\n7.png,grey 7\n7.png,a, b\n")
    named = {"file_name": "image", "text": "caption"}
    rows = Rows("captions", str(path), columns=named)
    assert rows[0]["messages"][0]["content"] == [{"type": "image", "path": str(tmp_path / "7.png")}]
    assert rows[0]["messages"][1]["content"] == "grey 7"
    with pytest.raises(BadSampleError, match=r"row 3: .*3 fields, but the table has 2: quote"):
        rows[1]
    with pytest.raises(
        BadSampleError, match=r"row 2: .*images or videos in 'image', which is not read \(file_name, te"
    ):
        Rows("captions", str(path))[0]
    with pytest.raises(BadSampleError, match=r"row 2: .*'text' is missing; there are caption, file_name.*columns: {te"):
        Rows("captions", str(path), columns={"file_name": "image"})[0]
    with pytest.raises(ValueError, match=r"Unknown field of the format captions: 'txt'\. Did you mean 'text'"):
        Rows("captions", str(path), columns={"txt": "caption"})


def test_a_field_of_a_table_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_text(f"file_name,text\n1.png,{'a' * 200_000}\n")
    assert len(Rows("captions", str(tmp_path / "a.csv"))[0]["messages"][1]["content"]) == 200_000


def test_eps_is_not_run(files, monkeypatch):
    """Neither from a file nor from a shard's bytes: PIL would start Ghostscript for it."""
    eps = io.BytesIO()
    files.image(1).save(eps, "eps")
    (files.folder / "a.png").write_bytes(eps.getvalue())
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given, **named: started.append(given))
    with pytest.raises(BadSampleError, match=r"a, 7: unreadable image: .*EPS files are programs"):
        Shards("a").sample({"__url__": "a", "__key__": "7", "png": eps.getvalue(), "txt": b"x"})
    with pytest.raises(ValueError, match="EPS files are programs"):
        read_image(str(files.folder / "a.png"))
    assert not started


@pytest.mark.parametrize("path", ["pipe:cat x.tar", "a.tar::pipe:cat x", "{pipe,a}:cat", "http://a/x';touch y;'.tar"])
def test_a_path_runs_no_command_unless_the_recipe_says_so(path):
    with pytest.raises(
        ValueError, match=r"runs a command in a shell\. If you trust the recipe, set `allow_commands: tr"
    ):
        Group.from_dict({"sources": [{"format": "webdataset", "path": path}]})
    assert Group.from_dict({"sources": [{"format": "webdataset", "path": path, "allow_commands": True}]}).weight == 1
