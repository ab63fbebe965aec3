"""Ratings of answers, one line per rater and question, in the same format for people and judges."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..journal import read_rows
from .records import Answers, Question
from .rubric import LEVELS


@dataclass(frozen=True)
class Mark:
    """
    A rater's mark for one answer.

    Args:
        level (`str`, *optional*): "A" to "D"; `None` if the rater gave none, or a judge's replies were malformed.
        abilities (`tuple[str, ...]`): The needed abilities that the answer shows.
        score (`float`, *optional*): Score from 1 to 10, in a comparison with a reference (Table 3).
    """

    level: str | None = None
    abilities: tuple[str, ...] = ()
    score: float | None = None


@dataclass(frozen=True)
class Sheet:
    """
    One rater's marks for the answers to one question.

    Args:
        question_id (`int`): Id of the question.
        rater (`str`): A person's name; for a judge its model and the order of the answers.
        marks (`dict[str, Mark]`): Marks by `model_id`, in the order in which the answers were shown.
        replies (`tuple[str, ...]`): A judge's raw replies, malformed ones first.
    """

    question_id: int
    rater: str
    marks: dict[str, Mark]
    replies: tuple[str, ...] = ()

    def row(self, systems: Mapping[str, Answers]) -> dict[str, Any]:
        """The row of the file; each mark has a hash of the rated answer."""
        marks = {}
        for model_id, mark in self.marks.items():
            said = {"score": mark.score} if mark.level is None and mark.score is not None else {"level": mark.level}
            abilities = {"abilities": list(mark.abilities)} if "level" in said else {}
            marks[model_id] = {"answer": systems[model_id].digest(self.question_id), **said, **abilities}
        row: dict[str, Any] = {"question_id": self.question_id, "rater": self.rater, "marks": marks}
        return {**row, "replies": list(self.replies)} if self.replies else row


# (question, rater) -> sheet
Sheets = dict[tuple[int, str], Sheet]


def read_ratings(
    rows: Iterable[tuple[str, dict]], questions: dict[int, Question], systems: Mapping[str, Answers]
) -> Sheets:
    """
    Collects ratings; a rater's last rating of an answer counts. Systems that are not in `systems` are left out.

    Args:
        rows (`Iterable[tuple[str, dict]]`): Rows of ratings files, each with its location.
        questions (`dict[int, Question]`): Questions by id.
        systems (`Mapping[str, Answers]`): Answers by `model_id`.

    Raises:
        ValueError: for an unknown question, level or ability, and for a rating of another answer.
    """
    sheets: Sheets = {}
    for where, row in rows:
        if not _is_sheet(row):
            raise ValueError(f"{where} is not a rating: it must have `question_id`, `rater` and `marks` by system.")
        question = questions.get(row["question_id"])
        if question is None:
            raise ValueError(f"{where} rates question {row['question_id']!r}, which is not among the questions.")
        key = (question.question_id, row["rater"])
        earlier = sheets.get(key, Sheet(*key, marks={}))
        marks = {name: mark for name, mark in row["marks"].items() if name in systems}
        for model_id, mark in marks.items():
            if mark.get("answer") != systems[model_id].digest(question.question_id):
                raise ValueError(
                    f"{where} rates another answer to question {question.question_id} than that in "
                    f"'{systems[model_id].path}': give the rated file, or rate this one."
                )
        read = {model_id: _read_mark(where, mark, question) for model_id, mark in marks.items()}
        sheets[key] = Sheet(*key, marks={**earlier.marks, **read}, replies=tuple(row.get("replies", ())))
    return sheets


def _is_sheet(row: dict) -> bool:
    marks = row.get("marks")
    known = {"question_id", "rater"} <= set(row) and isinstance(marks, dict)
    return known and all(isinstance(mark, dict) for mark in row["marks"].values())


def _read_mark(where: str, mark: dict, question: Question) -> Mark:
    level = mark.get("level")
    if level is not None and level not in LEVELS:
        raise ValueError(f"{where} gives the level {level!r}, but it must be one of {', '.join(LEVELS)}.")
    abilities = tuple(mark.get("abilities", ()))
    if unknown := set(abilities) - set(question.abilities):
        raise ValueError(
            f"{where} gives the ability {sorted(unknown)[0]}, but question {question.question_id} needs only "
            f"{', '.join(question.abilities)}."
        )
    return Mark(level, abilities, mark.get("score"))


def read_rating_files(
    paths: Iterable[Path], questions: dict[int, Question], systems: Mapping[str, Answers]
) -> list[Sheet]:
    """Reads several ratings files, as [`read_ratings`] reads one, and checks that every answer is rated."""
    sheets = list(read_ratings((row for path in paths for row in read_rows(path)), questions, systems).values())
    rated = {(sheet.question_id, model_id) for sheet in sheets for model_id in sheet.marks}
    for model_id, answers in systems.items():
        given = [number for number, text in answers.texts.items() if text is not None]
        left = [number for number in given if (number, model_id) not in rated]
        if left:
            raise ValueError(
                f"{len(left)} of {len(given)} answers of '{model_id}' are not rated, the first to question "
                f"{left[0]}: rate them, or leave '{answers.path}' out."
            )
    return sheets


def agreement(sheets: Iterable[Sheet]) -> tuple[float | None, int]:
    """
    Krippendorff's alpha of the levels, as an ordinal scale, over all answers.

    Returns:
        `tuple[float | None, int]`: Alpha, 1 for full agreement and 0 for chance, or `None` if no answer has two ratings
        or all are equal; and the number of answers with two or more ratings.
    """
    import krippendorff
    import numpy as np

    levels = {
        (sheet.rater, sheet.question_id, model_id): list(LEVELS).index(mark.level)
        for sheet in sheets
        for model_id, mark in sheet.marks.items()
        if mark.level is not None
    }
    raters = sorted({rater for rater, *_ in levels})
    answers = sorted({(number, model_id) for _, number, model_id in levels})
    table = np.array([[levels.get((rater, *answer), np.nan) for answer in answers] for rater in raters], dtype=float)
    table = table.reshape(len(raters), len(answers))
    twice = (~np.isnan(table)).sum(axis=0) > 1
    shared = table[:, twice]
    if len(np.unique(shared[~np.isnan(shared)])) < 2:
        return None, int(twice.sum())
    alpha = krippendorff.alpha(shared, level_of_measurement="ordinal")
    return float(alpha), int(twice.sum())
