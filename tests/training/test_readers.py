"""Every format becomes the same messages; a bad row is named with its file."""

import json

import pytest
from conftest import SYSTEM

from transformers_owl.training import BadSampleError, Rows
from transformers_owl.training.readers import READERS


def user(*parts):
    return {"role": "user", "content": [p if isinstance(p, dict) else {"type": "text", "text": p} for p in parts]}


def assistant(text):
    return {"role": "assistant", "content": text}


def image(path):
    return {"type": "image", "path": path}


def video(path):
    return {"type": "video", "path": path}


ROWS = {
    "captions": ({"file_name": "a/b.jpg", "text": " A cat. "}, [user(image("FOLDER/a/b.jpg")), assistant("A cat.")]),
    "webvid": (
        {"videoid": "7", "page_dir": "000_050", "name": "An owl flies. "},
        [user(video("FOLDER/000_050/7.mp4")), assistant("An owl flies.")],
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        [user("Add.\n1 2"), assistant("3")],
    ),
    "sharegpt": (
        {"conversations": [
            {"from": "gpt", "value": "left out"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "Bye"}, {"from": "gpt", "value": "Yes"},
        ]},
        [user("Hi"), assistant("Hello"), user("Bye"), assistant("Yes")],
    ),
    "baize": (
        {"input": "A conversation.\n[|Human|] What?\n[|AI|] That.\nAnd this.\n[|Human|] Oh\n[|AI|] Yes\n[|Human|] "},
        [user("What?"), assistant("That.\nAnd this."), user("Oh"), assistant("Yes")],
    ),
    "llava": (
        {"image": "a/b.jpg", "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."},
        ]},
        [user(image("FOLDER/a/b.jpg"), "What is it?"), assistant("A cat."), user("Sure?"), assistant("Yes.")],
    ),
    "original": (
        {"text": f"{SYSTEM}\nHuman: <image>\nHuman: <image>\nHuman: Same?\nAI: No.\nHuman: Why?\nAI: So.\n",
         "image": ["1.png", "2.png"], "task_type": "llava_sft"},
        [
            user(image("FOLDER/1.png"), image("FOLDER/2.png"), "Same?"), assistant("No."), user("Why?"),
            assistant("So."),
        ],
    ),
    "messages": (
        {"messages": [user(image("x.png"), "Hm?"), assistant("Ah.")]},
        [user(image("FOLDER/x.png"), "Hm?"), assistant("Ah.")],
    ),
}  # fmt: skip


def in_folder(value, folder):
    return json.loads(json.dumps(value).replace("FOLDER", str(folder)))


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_formats_become_messages(form, suffix, tmp_path):
    row, expected = ROWS[form]
    path = tmp_path / f"data{suffix}"
    path.write_text(json.dumps([row, row]) if suffix == ".json" else (json.dumps(row) + "\n") * 2)
    rows = Rows(form, str(path))
    assert len(rows) == 2
    for number in range(2):
        assert rows[number] == {
            "messages": in_folder(expected, tmp_path), "source": f"{path}, row {number + 1}"
        }  # fmt: skip
    elsewhere = Rows(form, str(path), images="/data")
    assert elsewhere[0]["messages"] == in_folder(expected, "/data")


def test_the_originals_text_comes_out_of_the_template_again(llama_processor, tmp_path):
    """A conversation read from the original's form renders to the same prompt."""
    text = f"{SYSTEM}\nHuman: <image>\nHuman: What is it?\nAI: A cat.\nHuman: Sure?\nAI: "
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text + "Yes.", "image": ["a.png"]}))
    (sample,) = Rows("original", str(tmp_path / "a.jsonl"))
    assert llama_processor.apply_chat_template(sample["messages"][:-1], add_generation_prompt=True) == text


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("alpaca", {"instruction": "a"}, "'output' is missing"),
        ("alpaca", {"instruction": "a", "output": " "}, "empty text: a message of role assistant is empty"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}]}, "a question and an answer are needed"),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "a"}, {"from": "bard", "value": "b"}]},
            "the speakers must be some of",
        ),
        (
            "llava",
            {"conversations": [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": "b"}]},
            "more <image> than images",
        ),
        (
            "llava",
            {"image": "x.png", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "there is no <image> for the image x.png",
        ),
        ("messages", ["no row"], "not a dictionary of fields"),
        ("messages", {"messages": None}, "not iterable"),
    ],
)
def test_bad_rows_are_named(form, row, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROWS[form][0]) + "\n" + json.dumps(row) + "\n")
    rows = Rows(form, str(path))
    assert rows[0]["messages"]
    with pytest.raises(BadSampleError, match=f"bad.jsonl, row 2: .*{message}"):
        rows[1]


def test_what_is_no_json_is_named(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"messages": []\n')
    with pytest.raises(BadSampleError, match=r"bad.jsonl, row 1: malformed row: .*Expecting"):
        Rows("messages", str(tmp_path / "bad.jsonl"))[0]
    (tmp_path / "bad.json").write_text("[{]")
    with pytest.raises(ValueError, match=r"bad.json is not valid JSON"):
        Rows("messages", str(tmp_path / "bad.json"))
    with pytest.raises(ValueError, match=r"Unknown data format: 'lava'\. Did you mean 'llava'"):
        Rows("lava", str(tmp_path / "bad.jsonl"))


@pytest.mark.parametrize(
    ("form", "row", "expected"),
    [
        ("captions", {"file_name": "a.webm", "text": "A cat."}, [user(video("FOLDER/a.webm")), assistant("A cat.")]),
        ("webvid", {"videoid": 7, "name": "An owl."}, [user(video("FOLDER/7.mp4")), assistant("An owl.")]),
        *(
            (
                "llava",
                {"video": "a.mp4", "conversations": [
                    {"from": "human", "value": f"{token}\nWhat happens?"}, {"from": "gpt", "value": "It flies."}
                ]},
                [user(video("FOLDER/a.mp4"), "What happens?"), assistant("It flies.")],
            )
            for token in ("<video>", "<image>", "<|video|>")
        ),
        (
            "llava",
            {"video": ["a.mp4", "b.mp4"], "image": "c.jpg", "conversations": [
                {"from": "human", "value": "<video>\n<image>\nLike <video>?"}, {"from": "gpt", "value": "No."}
            ]},
            [
                user(video("FOLDER/a.mp4"), image("FOLDER/c.jpg"), "Like", video("FOLDER/b.mp4"), "?"),
                assistant("No."),
            ],
        ),
        (
            "llava",
            {"conversations": [{"from": "human", "value": "HTML has <video>."}, {"from": "gpt", "value": "Yes."}]},
            [user("HTML has <video>."), assistant("Yes.")],
        ),
        (
            "original",
            {"text": f"{SYSTEM}\nHuman: <|video|>\nHuman: What?\nAI: That.", "video": ["a.mp4"]},
            [user(video("FOLDER/a.mp4"), "What?"), assistant("That.")],
        ),
    ],
)  # fmt: skip
def test_rows_with_videos(form, row, expected, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    text = json.dumps(Rows(form, str(tmp_path / "rows.jsonl"))[0]["messages"])
    assert json.loads(text.replace(str(tmp_path), "FOLDER")) == expected


def test_more_placeholders_than_videos(tmp_path):
    row = {
        "video": "a.mp4",
        "conversations": [{"from": "human", "value": "<video><video>"}, {"from": "gpt", "value": "x"}],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadSampleError, match="more <video> than images and videos"):
        Rows("llava", str(tmp_path / "rows.jsonl"))[0]
