"""OwlEval's files are read as they are; what does not fit together is named."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from transformers_owl.evaluation.paper import NEEDED
from transformers_owl.evaluation.records import read_answers, read_owleval, read_systems, read_vicuna

from .conftest import write_rows


def test_questions_are_kept_to_the_letter(questions, folder):
    assert questions[3].text == "What does it say？"
    assert questions[4].text == "Why does it say so? "
    assert questions[5].image == folder / "cases/3.jpg"
    assert questions[4].abilities == ("IU", "VU", "RA", "MDA")
    assert [number for number, one in questions.items() if "single_turn" in one.groups] == [1, 2, 5, 6, 8]


def test_answers_are_joined_by_id_whatever_their_texts_and_suffixes(systems):
    assert list(systems) == ["owl:v1", "react"]
    assert systems["owl:v1"].texts[8] == "Owl's answer 8, with <b>marks</b>."
    given = {number: text for number, text in systems["react"].texts.items() if text is not None}
    assert given == {2: " Yes,\nthere is.", 4: "So.", 7: "Left\n"}


def change(path, number, **values):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[number - 1].update(values)
    write_rows(path, rows)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question_id": 99}, "line 2 answers question 99, which is not among the questions"),
        ({"question_id": 3}, "line 3: 3 occurs twice"),
        ({"answer": None}, "line 2 has the answer None, but it must be a string"),
        ({"image": "3.png"}, "about 3.png, but question 2 is about 2.jpg"),
        ({"model_id": "other"}, "has answers of other, owl:v1"),
    ],
)
def test_answers_to_other_questions_are_named(values, message, folder, questions):
    path = folder / "answer/owl.jsonl"
    change(path, 2, **values)
    with pytest.raises(ValueError, match=message):
        read_answers(path, questions)


def test_partial_files_are_named(folder, questions):
    path = folder / "answer/owl.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:6]))
    with pytest.raises(ValueError, match="answers 6 of 8 questions; unanswered: 7, 8"):
        read_answers(path, questions)
    path.write_text("".join(lines[:6]) + lines[6][:20])
    with pytest.raises(ValueError, match=r"line 7 is not valid JSON .* truncated"):
        read_answers(path, questions)
    path.rename(folder / "answer/owl.jsonl.partial")
    with pytest.raises(ValueError, match=r"not finished, only 'owl\.jsonl\.partial'"):
        read_answers(path, questions)


def test_the_same_system_twice_is_an_error(answer_files, questions):
    with pytest.raises(ValueError, match="'owl:v1' occurs twice"):
        read_systems([answer_files[0], answer_files[0]], questions)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "cases/4.jpg").unlink(), r"line 6 is about '.*4.jpg', which does not exist"),
        (lambda folder: (folder / "questions.jsonl").unlink(), "has no questions.jsonl"),
        (lambda folder: change(folder / "questions.jsonl", 3, ability="a,x"), "line 3 needs the ability 'x'"),
        (lambda folder: change(folder / "questions.jsonl", 3, question_id=1), "line 3: 1 occurs twice"),
        (lambda folder: (folder / "questions.jsonl").write_text(""), "is empty"),
        (lambda folder: (folder / "questions.jsonl").write_text("[]\n"), "line 1 is a list"),
        (lambda folder: (folder / "questions.jsonl").write_text("{}\n"), "line 1 has no 'image'"),
    ],
)
def test_a_folder_that_is_not_whole_is_named(spoil, message, folder):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        read_owleval(folder)


def test_questions_of_vicuna_in_both_of_their_forms(tmp_path):
    rows = [{"question_id": 1, "text": "Why?", "category": "x"}, {"question_id": 2, "turns": ["How?"], "category": "x"}]
    questions = read_vicuna(write_rows(tmp_path / "question.jsonl", rows))
    assert {number: one.text for number, one in questions.items()} == {1: "Why?", 2: "How?"}
    answers = [{"question_id": number, "text": f"So {number}.", "model_id": "m", "answer_id": "x"} for number in (1, 2)]
    read = read_answers(write_rows(tmp_path / "answer.jsonl", answers), questions)
    assert (read.model_id, read.texts) == ("m", {1: "So 1.", 2: "So 2."})


@pytest.mark.skipif("OWLEVAL" not in os.environ, reason="OWLEVAL does not name the folder of the published OwlEval")
def test_the_published_files():
    folder = Path(os.environ["OWLEVAL"])
    questions = read_owleval(folder)
    assert (len(questions), len({one.image for one in questions.values()})) == (82, 50)
    assert Counter(ability for one in questions.values() for ability in one.abilities) == NEEDED
    assert Counter(group for one in questions.values() for group in one.groups) == {"single_turn": 50, "multi_turn": 52}
    systems = read_systems(sorted((folder / "answer").iterdir()), questions)
    missing = {name: sum(text is None for text in one.texts.values()) for name, one in systems.items()}
    assert missing == {
        "MMreact": 14, "BLIP2": 2, "llava-13b": 0, "mPLUG_Owl_7b:v1": 0, "minigpt4_13b": 0, "openflanmingo": 9,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["../secret.jpg", "link.jpg", "deeper/link.jpg", "/etc/hostname", "."])
def test_images_lie_in_their_folder(name, folder):
    (folder / "secret.jpg").write_bytes((folder / "cases/1.jpg").read_bytes())
    (folder / "cases/link.jpg").symlink_to(folder / "secret.jpg")
    (folder / "cases/deeper").symlink_to(folder)
    (folder / "link.jpg").write_bytes(b"")
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    write_rows(folder / "questions.jsonl", [*rows[1:], {**rows[0], "image": name}])
    with pytest.raises(ValueError, match=r"line 8 is about .*: all images must be in cases/"):
        read_owleval(folder)
