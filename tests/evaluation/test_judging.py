"""A judge sees all answers in both orders; only what it said counts, and what it said is kept."""

import json
import re

import pytest
from typer.testing import CliRunner

from transformers_owl.cli import app
from transformers_owl.evaluation.judging import judge_owleval, judge_pairs, last_object
from transformers_owl.evaluation.ratings import Mark
from transformers_owl.evaluation.records import read_answers, read_vicuna

from . import small_models
from .conftest import write_rows


class Judge:
    """Rates by the answers' texts; fails to keep to the form as often as told, for each question and order."""

    name = "judge"

    def __init__(self, malformed=()):
        self.malformed = malformed
        self.chats = []

    def answer(self, chats):
        self.chats += [list(chat) for chat in chats]
        return [self.reply(chat) for chat in chats]

    def reply(self, chat):
        if len(chat) // 2 < len(self.malformed):
            return self.malformed[len(chat) // 2]
        parts = re.split(r"Answer \d+:\n", chat[0]["content"][-1]["text"].partition("\n\nReply with")[0])
        texts = [part.strip() for part in parts[1:]]
        said = {str(number): self.mark(text) for number, text in enumerate(texts, 1)}
        return f"Well, {{so}}. {json.dumps(said)}"

    def mark(self, text):
        return {"level": "A" if "Owl" in text else "C", "abilities": ["IU"]}


class Scorer(Judge):
    def mark(self, text):
        return len(text) % 10 + 1


def test_every_question_is_judged_in_both_orders(questions, systems, tmp_path):
    judge = Judge()
    sheets = list(judge_owleval(judge, questions, systems, tmp_path / "ratings.jsonl", batch_size=3))
    assert len(sheets) == 2 * len(questions)
    both = [sheet for sheet in sheets if sheet.question_id == 4]
    good, bad = Mark("A", ("IU",)), Mark("C", ("IU",))
    assert [(sheet.rater, list(sheet.marks.items())) for sheet in both] == [
        ("judge, in order", [("owl:v1", good), ("react", bad)]),
        ("judge, reversed", [("react", bad), ("owl:v1", good)]),
    ]
    assert [list(sheet.marks) for sheet in sheets if sheet.question_id == 1] == [["owl:v1"]] * 2


def test_the_judge_is_shown_all_it_needs_and_no_names(questions, systems, tmp_path):
    judge = Judge()
    list(judge_owleval(judge, questions, systems, tmp_path / "ratings.jsonl"))
    image, text = next(chat[0]["content"] for chat in judge.chats if "Why does it say so?" in str(chat))
    assert image == {"type": "image", "path": str(questions[4].image)}
    for part in (
        "A: Correct and satisfying.",
        "MDA: Multi-turn dialogue.",
        "Question: Why does it say so?",
        "(asked before: Is there text?\nanswered before:  Yes,\nthere is.)",
        "Owl's answer 4, with <b>marks</b>.",
    ):
        assert part in text["text"]
    assert "OCR:" not in text["text"]
    assert not any(name in text["text"] for name in systems)


def test_malformed_replies_are_asked_for_again_and_kept(questions, systems, tmp_path):
    malformed = ("I cannot say.", '{"1": {"level": "A", "abilities": []}}')
    judge = Judge(malformed)
    output = tmp_path / "ratings.jsonl"
    sheet = next(sheet for sheet in judge_owleval(judge, questions, systems, output) if sheet.question_id == 2)
    assert sheet.marks == {"owl:v1": Mark("A", ("IU",)), "react": Mark("C", ("IU",))}
    assert (sheet.replies[:2], len(sheet.replies)) == (malformed, 3)
    again = next(chat for chat in judge.chats if len(chat) == 5 and "Is there text?" in str(chat[0]))
    assert again[2]["content"][0]["text"].startswith("Your reply contains no JSON object.")
    assert again[4]["content"][0]["text"].startswith("The keys of your object are 1, but must be 1, 2.")


@pytest.mark.parametrize(
    "reply",
    [
        "A",
        '{"1": "A", "2": "B"}',
        '{"1": {"level": "E", "abilities": []}, "2": {"level": "A", "abilities": []}}',
        '{"1": {"level": "A"}, "2": {"level": "A"}}',
        '{"1": {"level": "A", "abilities": ["RA"]}, "2": {"level": "A", "abilities": []}}',
        '{"1": {"level": ["A"], "abilities": []}, "2": {"level": "A", "abilities": [{}]}}',
    ],
)
def test_nothing_is_made_up_for_a_judge_that_never_keeps_to_the_form(reply, questions, systems, tmp_path):
    one = {2: questions[2]}
    answers = {name: type(own)(own.path, name, {2: own.texts[2]}) for name, own in systems.items()}
    sheets = list(judge_owleval(Judge([reply] * 3), one, answers, tmp_path / "ratings.jsonl"))
    assert [(sheet.marks, sheet.replies) for sheet in sheets] == [
        ({"owl:v1": Mark(), "react": Mark()}, (reply,) * 3),
        ({"react": Mark(), "owl:v1": Mark()}, (reply,) * 3),
    ]


def test_what_is_judged_is_not_judged_again(questions, systems, tmp_path):
    output = tmp_path / "ratings.jsonl"
    first = list(judge_owleval(Judge(["bad"] * 3), questions, systems, output))
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:10]) + lines[10][:30])
    judge = Judge()
    sheets = list(judge_owleval(judge, questions, systems, output))
    assert len(judge.chats) == 6
    assert sorted((sheet.question_id, sheet.rater) for sheet in sheets) == sorted(
        (sheet.question_id, sheet.rater) for sheet in first
    )
    assert sheets[:10] == first[:10]


def test_a_system_that_joins_later_is_judged_beside_the_others(questions, systems, tmp_path):
    output = tmp_path / "ratings.jsonl"
    list(judge_owleval(Judge(), questions, {"owl:v1": systems["owl:v1"]}, output))
    judge = Judge()
    list(judge_owleval(judge, questions, systems, output))
    assert len(judge.chats) == 2 * sum(text is not None for text in systems["react"].texts.values())


def test_the_last_object_of_a_reply_counts():
    assert last_object('Say {"1": 2}? No {x}: ```json\n{"1": {"a": [1]}}\n``` {') == {"1": {"a": [1]}}


@pytest.fixture
def pairs(tmp_path):
    """Two questions of Vicuna's, with answers of a system and of the reference."""
    asked = write_rows(tmp_path / "question.jsonl", [{"question_id": n, "text": f"Why {n}?"} for n in (7, 9)])
    texts = {"mine": {7: "abc", 9: "abcde"}, "chatgpt": {7: "abcd", 9: "a"}}
    files = {
        name: write_rows(
            tmp_path / f"{name}.jsonl", [{"question_id": n, "text": text, "model_id": name} for n, text in own.items()]
        )
        for name, own in texts.items()
    }
    return asked, files["mine"], files["chatgpt"]


def test_pairs_are_scored_in_both_orders(pairs, tmp_path):
    questions = read_vicuna(pairs[0])
    mine, reference = (read_answers(path, questions) for path in pairs[1:])
    judge = Scorer()
    sheets = list(judge_pairs(judge, questions, mine, reference, tmp_path / "ratings.jsonl"))
    assert [(sheet.question_id, list(sheet.marks.items())) for sheet in sheets] == [
        (7, [("mine", Mark(score=4)), ("chatgpt", Mark(score=5))]),
        (7, [("chatgpt", Mark(score=5)), ("mine", Mark(score=4))]),
        (9, [("mine", Mark(score=6)), ("chatgpt", Mark(score=2))]),
        (9, [("chatgpt", Mark(score=2)), ("mine", Mark(score=6))]),
    ]
    with pytest.raises(ValueError, match="both of 'mine'"):
        judge_pairs(judge, questions, mine, mine, tmp_path / "ratings.jsonl")


@pytest.mark.parametrize("score", ["11", "0", "true", '"8"', "null"])
def test_a_score_is_a_number_from_1_to_10(score, pairs, tmp_path):
    questions = read_vicuna(pairs[0])
    mine, reference = (read_answers(path, questions) for path in pairs[1:])
    judge = Scorer([f'{{"1": {score}, "2": 5}}'])
    sheet = next(judge_pairs(judge, questions, mine, reference, tmp_path / "ratings.jsonl"))
    assert (len(sheet.replies), sheet.marks["mine"]) == (2, Mark(score=4))


def test_the_command_judges_by_an_endpoint_and_scores(folder, answer_files, tmp_path):
    judge = Judge()
    with small_models.endpoint(judge.reply) as (url, seen):
        ratings = ["--owleval", str(folder), *map(str, answer_files)]
        arguments = ["judge", *ratings, "--model", "far", "--endpoint", url, "--output", str(tmp_path / "r.jsonl")]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "16 ratings" in result.stdout
    assert "0 are empty" in result.stdout
    assert len(seen) == 16
    scores = ["score", *ratings, "--ratings", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "scores")]
    result = CliRunner().invoke(app, scores)
    assert result.exit_code == 0, result.output
    assert "Rated by far, reversed: 8 questions; malformed: 0 for good, 0 more" in result.stdout
    assert "Krippendorff's alpha of the levels (ordinal): 1.000, over 11 answers" in result.stdout


def test_the_command_compares_with_a_reference_by_a_local_model(pairs, tmp_path):
    """A small random model writes no JSON: nothing is scored, everything is kept and counted."""
    model = small_models.text_model(tmp_path / "model")
    asked = ["--vicuna", str(pairs[0]), "--reference", str(pairs[2])]
    output = str(tmp_path / "ratings.jsonl")
    arguments = ["judge", str(pairs[1]), *asked, "--model", model, "--output", output, "--max-new-tokens", "5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "4 ratings" in result.stdout
    assert "4 are empty" in result.stdout
    rows = [json.loads(line) for line in (tmp_path / "ratings.jsonl").read_text().splitlines()]
    assert [len(row["replies"]) for row in rows] == [3] * 4
    result = CliRunner().invoke(app, ["score", str(pairs[1]), *asked, "--ratings", output, "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert "There are no scores of 'mine' against 'chatgpt'" in result.stderr
