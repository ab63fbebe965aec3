"""Any model answers all questions: each in its own context, the same alone and in a batch, interrupted or not."""

import base64
import json
import os
import socket
from pathlib import Path

import PIL.Image
import pytest
import transformers
from typer.testing import CliRunner

from transformers_owl.cli import app
from transformers_owl.evaluation.answering import answer_questions
from transformers_owl.evaluation.models import PLAIN_TEMPLATE, Endpoint, LocalModel, assistant, user
from transformers_owl.evaluation.records import read_answers, read_owleval

from . import small_models
from .conftest import QUESTIONS, write_rows


class Parrot:
    """Says how many turns it was given, and keeps what it was given."""

    name = "parrot"

    def __init__(self, fail_at=99):
        self.chats = []
        self.fail_at = fail_at

    def answer(self, chats):
        if len(self.chats) >= self.fail_at:
            raise ConnectionError("gone")
        self.chats += chats
        return [f"{len(chat)} to {chat[-1]['content'][-1]['text']}" for chat in chats]


def answer_all(model, questions, output, batch_size=3):
    answers = {question.question_id: text for question, text in answer_questions(model, questions, output, batch_size)}
    read = read_answers(output, questions)
    assert read.texts == answers
    assert list(read.texts) == list(questions)
    return answers


def test_a_question_comes_with_the_dialogue_before_it(questions, folder, tmp_path):
    parrot = Parrot()
    answers = answer_all(parrot, questions, tmp_path / "answers.jsonl")
    assert answers[4] == "5 to Why does it say so? "
    assert parrot.chats[-1] == [
        user("Is there text?", folder / "cases/2.jpg"),
        assistant("1 to Is there text?"),
        user("What does it say？"),
        assistant("3 to What does it say？"),
        user("Why does it say so? "),
    ]
    row = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[2])
    assert row == {
        "image": "2.jpg", "question_id": 3, "question": "What does it say？", "answer": "3 to What does it say？",
        "model_id": "parrot",
    }  # fmt: skip


def test_an_interrupted_run_goes_on(questions, tmp_path):
    output = tmp_path / "answers.jsonl"
    with pytest.raises(ConnectionError):
        answer_all(Parrot(fail_at=3), questions, output)
    assert not output.exists()
    partial = tmp_path / "answers.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 3
    partial.write_text(partial.read_text() + '{"question_id": 6, "ans')
    second = Parrot()
    answers = answer_all(second, questions, output)
    assert len(second.chats) == len(questions) - 3
    assert answers == answer_all(Parrot(), questions, tmp_path / "at-once.jsonl")
    assert not partial.exists()


def test_a_run_of_another_model_is_not_taken_up(questions, tmp_path):
    with pytest.raises(ConnectionError):
        answer_all(Parrot(fail_at=3), questions, tmp_path / "answers.jsonl")
    other = Parrot()
    other.name = "other"
    with pytest.raises(ValueError, match="line 1 is not an answer of 'other'"):
        answer_all(other, questions, tmp_path / "answers.jsonl")


def test_the_same_run_again_asks_nothing_and_more_questions_are_added(questions, tmp_path):
    output = tmp_path / "answers.jsonl"
    first = dict(list(questions.items())[:4])
    answer_all(Parrot(), first, output)
    again = Parrot()
    answer_all(again, first, output)
    assert not again.chats
    answer_all(again, questions, output)
    assert len(again.chats) == len(questions) - 4


@pytest.mark.parametrize("changed", ["model", "fewer questions"])
def test_a_second_run_never_destroys_the_answers_of_the_first(changed, questions, folder, tmp_path):
    """Nor does the command, which says so before it loads a model."""
    output = tmp_path / "answers.jsonl"
    answer_all(Parrot(), questions, output)
    before = output.read_bytes()
    other = Parrot()
    other.name = "other" if changed == "model" else "parrot"
    asked = questions if changed == "model" else dict(list(questions.items())[:2])
    with pytest.raises(ValueError, match=r"is not an answer of '.*' to these questions: choose another --output"):
        answer_all(other, asked, output)
    result = CliRunner().invoke(
        app, ["answer", "--model", "no/such", "--owleval", str(folder), "--output", str(output)]
    )
    assert result.exit_code == 1 and "choose another --output" in result.stderr
    assert output.read_bytes() == before and not other.chats


MODELS = {
    "llava": small_models.llava,
    "blip-2 of opt": small_models.blip2,
    "blip-2 of t5": lambda folder: small_models.blip2(folder, "t5"),
    "instructblip": small_models.instructblip,
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_library_answer_by_the_same_command(name, folder, questions, tmp_path):
    model = MODELS[name](tmp_path / "model")
    arguments = ["answer", "--owleval", str(folder), "--model", model, "--max-new-tokens", "6"]
    texts = []
    for batch_size in ("3", "1"):
        output = tmp_path / f"{batch_size}.jsonl"
        result = CliRunner().invoke(app, [*arguments, "--output", str(output), "--batch-size", batch_size])
        assert result.exit_code == 0, result.output
        texts.append(read_answers(output, questions).texts)
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) > 2
    processor = transformers.AutoProcessor.from_pretrained(model)
    template = processor.chat_template or PLAIN_TEMPLATE
    turns = [user(QUESTIONS[1][1], questions[2].image), assistant(texts[0][2]), user(QUESTIONS[2][1])]
    prompt = processor.apply_chat_template(turns, chat_template=template, add_generation_prompt=True)
    if name != "llava":
        assert prompt == f"Question: Is there text? Answer: {texts[0][2]} Question: What does it say？ Answer:"
    inputs = processor(text=prompt, images=PIL.Image.open(questions[2].image), return_tensors="pt")
    auto = transformers.AutoModelForImageTextToText.from_pretrained(model)
    written = auto.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
    words = processor.decode(written if name.endswith("t5") else written[inputs["input_ids"].shape[1] :])
    assert words.replace("<pad>", "").replace("</s>", "").strip() == texts[0][3].strip()


def test_a_model_that_brings_its_code_answers_if_it_is_trusted(folder, tmp_path):
    """Its own `generate` says the letter with id 70, whatever it is asked."""
    model = Path(small_models.llava(tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "code_llava.MyConfig", "AutoModelForImageTextToText": "code_llava.MyLlava"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "my-llava", "auto_map": names}))
    (model / "code_llava.py").write_text(
        "from torch import cat, full_like\nfrom transformers import LlavaConfig, LlavaForConditionalGeneration\n\n\n"
        "class MyConfig(LlavaConfig):\n    model_type = 'my-llava'\n\n\n"
        "class MyLlava(LlavaForConditionalGeneration):\n    config_class = MyConfig\n\n"
        "    def generate(self, input_ids, **kwargs):\n"
        "        return cat([input_ids, full_like(input_ids[:, :1], 70)], dim=1)\n"
    )
    command = ["answer", "--owleval", str(folder), "--model", str(model), "--output", str(tmp_path / "own.jsonl")]
    refused = CliRunner().invoke(app, command, input="n\n")
    assert refused.exit_code == 1
    assert "trust_remote_code" in refused.output
    trusted = CliRunner().invoke(app, [*command, "--trust-remote-code"])
    assert trusted.exit_code == 0, trusted.output
    letter = transformers.AutoTokenizer.from_pretrained(model).decode([70])
    rows = (tmp_path / "own.jsonl").read_text().splitlines()
    assert [json.loads(row)["answer"] for row in rows] == [letter] * len(QUESTIONS)


def test_our_model_answers(llama, folder, questions, tmp_path):
    texts = [
        answer_all(LocalModel(llama.checkpoint, max_new_tokens=6), questions, tmp_path / f"{size}.jsonl", size)
        for size in (1, 8)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) > 2


def test_a_model_of_text_alone_answers_vicunas_questions_and_no_others(tmp_path, folder):
    model = small_models.text_model(tmp_path / "model")
    asked = write_rows(tmp_path / "question.jsonl", [{"question_id": n, "text": f"Why {n}?"} for n in (7, 9)])
    output = tmp_path / "answers.jsonl"
    arguments = ["answer", "--model", model, "--output", str(output), "--max-new-tokens", "5"]
    result = CliRunner().invoke(app, [*arguments, "--vicuna", str(asked)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["question_id"], row["model_id"], set(row)) for row in rows] == [
        (number, model, {"question_id", "text", "model_id"}) for number in (7, 9)
    ]
    other = ["--owleval", str(folder), "--output", str(tmp_path / "others.jsonl")]
    result = CliRunner().invoke(app, [*arguments, *other])
    assert result.exit_code == 1
    assert "is a text-only model" in result.stderr


def test_an_endpoint_answers(folder, questions, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def reply(messages):
        return f"{len(messages)} to {messages[-1]['content'][-1]['text']}"

    with small_models.endpoint(reply) as (url, seen):
        arguments = ["answer", "--owleval", str(folder), "--model", "far", "--endpoint", url, "--output"]
        result = CliRunner().invoke(app, [*arguments, str(tmp_path / "answers.jsonl"), "--max-new-tokens", "77"])
    assert result.exit_code == 0, result.output
    texts = read_answers(tmp_path / "answers.jsonl", questions).texts
    assert texts == {
        number: f"{2 * turn + 1} to {row[1]}"
        for number, (row, turn) in enumerate(zip(QUESTIONS, [0, 0, 1, 2, 0, 0, 1, 0], strict=True), 1)
    }
    assert {(request["model"], request["max_tokens"]) for request in seen} == {("far", 77)}
    third = next(request for request in seen if len(request["messages"]) == 5)["messages"]
    assert [message["role"] for message in third] == ["user", "assistant"] * 2 + ["user"]
    assert third[1]["content"] == "1 to Is there text?"
    sent = {message["content"][0]["image_url"]["url"] for message in (request["messages"][0] for request in seen)}
    formats = {url.partition(";")[0]: base64.b64decode(url.partition(",")[2]) for url in sent}
    assert formats["data:image/png"] == (folder / "cases/3.jpg").read_bytes()
    assert set(formats) == {"data:image/png", "data:image/jpeg"}


@pytest.mark.parametrize(
    ("status", "delay", "message"),
    [(404, 0, "refused with 404: .*no such model"), (200, 0.5, "gave no answer within 0.2 seconds")],
)
def test_an_endpoint_in_trouble_is_named(status, delay, message):
    with small_models.endpoint(lambda messages: "late" if status == 200 else status, delay) as (url, seen):
        model = Endpoint("far", url, timeout=0.2)
        with pytest.raises(ConnectionError, match=message):
            model.answer([[user("Hi")]])
    assert len(seen) == (1 if status == 404 else 3)


@pytest.mark.parametrize(
    "odd",
    ['{"choices": []}', "{}", "[]", "5", "null", '{"choices": [{"message": {"content": 5}}]}', "<html>busy</html>", "{",
     '{"choices": [{"message": {"content": null}}]}', '{"choices": [{}]}', '{"choices": 7}'],
)  # fmt: skip
def test_what_is_not_an_answer_is_asked_again_and_named(odd):
    is_named = pytest.raises(ConnectionError, match=r"is not an answer|cannot be reached")
    with small_models.endpoint(lambda messages: odd.encode()) as (url, seen), is_named:
        Endpoint("far", url).answer([[user("Hi")]])
    assert len(seen) == 3


def test_an_endpoint_that_recovers_answers():
    replies = iter([b"<html>busy</html>", 503, "at last"])
    with small_models.endpoint(lambda messages: next(replies)) as (url, _):
        assert Endpoint("far", url).answer([[user("Hi")]]) == ["at last"]


def test_an_endpoint_that_is_down_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match=f"127.0.0.1:{port}/v1 cannot be reached"):
        Endpoint("far", f"http://127.0.0.1:{port}/v1").answer([[user("Hi")]])


@pytest.mark.parametrize("given", [[], ["--owleval", "x", "--vicuna", "y"]])
def test_either_kind_of_questions_is_needed(given, tmp_path):
    result = CliRunner().invoke(app, ["answer", "--model", "m", "--output", str(tmp_path / "a.jsonl"), *given])
    assert result.exit_code == 1
    assert "either --owleval FOLDER or --vicuna FILE" in result.stderr


@pytest.mark.skipif("OWLEVAL" not in os.environ, reason="OWLEVAL does not name the folder of the published OwlEval")
def test_the_published_questions_are_answered(llama, tmp_path):
    questions = read_owleval(Path(os.environ["OWLEVAL"]))
    answers = answer_all(LocalModel(llama.checkpoint, max_new_tokens=4), questions, tmp_path / "answers.jsonl", 8)
    assert len(answers) == 82
