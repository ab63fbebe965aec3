"""The files of OwlEval and of Vicuna's questions, as published and as written here."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..journal import partial_of, read_rows


# The files' letters. The release does not say what they stand for; their counts are the denominators of Table 2.
LETTERS = {"a": "IU", "b": "VU", "c": "OCR", "d": "KTA", "e": "RA", "f": "MDA"}
# What the published files say where a system gave no answer: "cannot be traced", "gave up", "refused".
NO_ANSWER = ("无法回溯", "模型放弃回答", "模型拒绝回答")


@dataclass(frozen=True)
class Question:
    """
    One question.

    Args:
        question_id (`int`): Id that joins questions, answers and ratings.
        text (`str`): The question, exactly as in the file.
        image (`Path`, *optional*): Its image; questions about one image are the turns of one dialogue.
        abilities (`tuple[str, ...]`): Abilities of Table 1 that an answer needs.
        groups (`tuple[str, ...]`): "single_turn", "multi_turn" or both.
    """

    question_id: int
    text: str
    image: Path | None = None
    abilities: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """One system's answers by question id; `None` if it gave none."""

    path: Path
    model_id: str
    texts: dict[int, str | None] = field(repr=False)

    def digest(self, question_id: int) -> str:
        """A short hash of an answer's text, which ratings keep."""
        return hashlib.sha256((self.texts[question_id] or "").encode(errors="backslashreplace")).hexdigest()[:16]


def read_owleval(folder: Path) -> dict[int, Question]:
    """
    Reads `questions.jsonl` of OwlEval's folder, with images in `cases/`.

    Raises:
        ValueError: for another folder, a missing image, a repeated id, and an unknown ability.
    """
    path = folder / "questions.jsonl"
    if not path.is_file():
        raise ValueError(f"'{folder}' has no questions.jsonl: give the folder with questions.jsonl and cases/.")
    questions: dict[int, Question] = {}
    for where, row in read_rows(path):
        _require(where, row, "image", "question_id", "question", "ability", "category")
        letters = row["ability"].split(",")
        if unknown := [letter for letter in letters if letter not in LETTERS]:
            raise ValueError(f"{where} needs the ability {unknown[0]!r}, but it must be one of {', '.join(LETTERS)}.")
        image = folder / "cases" / row["image"]
        if not os.path.realpath(image).startswith(os.path.join(os.path.realpath(folder / "cases"), "")):
            raise ValueError(f"{where} is about '{image}', which is elsewhere: all images must be in cases/.")
        if not image.is_file():
            raise ValueError(f"{where} is about '{image}', which does not exist: all images must be in cases/.")
        abilities = tuple(LETTERS[letter] for letter in letters)
        question = Question(row["question_id"], row["question"], image, abilities, tuple(row["category"]))
        _add(questions, where, row["question_id"], question)
    return questions


def read_vicuna(path: Path) -> dict[int, Question]:
    """Reads text-only questions in Vicuna's format: `question_id` and `text`, or FastChat's `turns` with one entry."""
    questions: dict[int, Question] = {}
    for where, row in read_rows(path):
        if len(row.get("turns", [])) == 1:
            row = {**row, "text": row["turns"][0]}
        _require(where, row, "question_id", "text")
        _add(questions, where, row["question_id"], Question(row["question_id"], row["text"]))
    return questions


def read_answers(path: Path, questions: dict[int, Question]) -> Answers:
    """
    Reads one system's answers, joined to the questions only by `question_id`: the published files differ from
    `questions.jsonl` in texts and image suffixes. Vicuna's files name the answer `text`.

    Raises:
        ValueError: for an unknown id, another image, several systems in one file, and questions without an answer.
    """
    partial = partial_of(path)
    if not path.is_file() and partial.is_file():
        raise ValueError(f"'{path}' is not finished, only '{partial.name}' exists: run the same `answer` again.")
    texts: dict[int, str | None] = {}
    models = set()
    for where, row in read_rows(path):
        answer = "answer" if "answer" in row else "text"
        _require(where, row, "question_id", "model_id", answer)
        if not isinstance(row[answer], str):
            raise ValueError(f"{where} has the answer {row[answer]!r}, but it must be a string.")
        if row["question_id"] not in questions:
            raise ValueError(f"{where} answers question {row['question_id']!r}, which is not among the questions.")
        image = questions[row["question_id"]].image
        if image is not None and Path(row.get("image", image)).stem != image.stem:
            raise ValueError(
                f"{where} is about {row['image']}, but question {row['question_id']} is about {image.name}: "
                "these answers belong to other questions."
            )
        _add(texts, where, row["question_id"], None if _is_missing(row[answer]) else row[answer])
        models.add(row["model_id"])
    if len(models) > 1:
        raise ValueError(f"'{path}' has answers of {', '.join(sorted(models))}: split it into one file per system.")
    if left := [number for number in questions if number not in texts]:
        raise ValueError(f"'{path}' answers {len(texts)} of {len(questions)} questions; unanswered: {_few(left)}.")
    return Answers(path, models.pop(), texts)


def read_systems(paths: list[Path], questions: dict[int, Question]) -> dict[str, Answers]:
    """Reads the answers of several systems, by `model_id`."""
    systems: dict[str, Answers] = {}
    for path in paths:
        answers = read_answers(path, questions)
        _add(systems, f"'{path}'", answers.model_id, answers)
    return systems


def answer_row(question: Question, model_id: str, text: str) -> dict:
    """An answer in the format of OwlEval's files, or of Vicuna's for a question without an image."""
    if question.image is None:
        return {"question_id": question.question_id, "text": text, "model_id": model_id}
    return {
        "image": question.image.name,
        "question_id": question.question_id,
        "question": question.text,
        "answer": text,
        "model_id": model_id,
    }


def _is_missing(answer: str) -> bool:
    return answer.strip(" .\n") in NO_ANSWER


def _require(where: str, row: dict, *keys: str) -> None:
    if left := [key for key in keys if key not in row]:
        raise ValueError(f"{where} has no {left[0]!r}, only {', '.join(map(repr, row))}.")


def _add(known: dict, where: str, key, value) -> None:
    if key in known:
        raise ValueError(f"{where}: {key!r} occurs twice.")
    known[key] = value


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
