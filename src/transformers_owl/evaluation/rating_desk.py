"""The state behind the rating page: which question comes next, and the ratings so far."""

import random
from collections.abc import Mapping
from pathlib import Path

from ..journal import Journal
from .ratings import Mark, Sheet, agreement, read_ratings
from .records import Answers, Question


class RatingDesk:
    """
    Questions, answers and their ratings.

    Args:
        questions (`dict[int, Question]`): Questions by id.
        systems (`Mapping[str, Answers]`): Answers by `model_id`.
        output (`Path`): The ratings file; existing ratings are loaded.
    """

    def __init__(self, questions: dict[int, Question], systems: Mapping[str, Answers], output: Path):
        self.questions = questions
        self.systems = systems
        self.journal = Journal(output)
        self.sheets = read_ratings(self.journal.rows(), questions, systems)

    def order(self, rater: str, number: int) -> list[str]:
        """The systems that answered, in a random order that depends only on question and rater."""
        names = [name for name, answers in self.systems.items() if answers.texts[number] is not None]
        random.Random(f"{rater}/{number}".encode(errors="backslashreplace")).shuffle(names)
        return names

    def mark(self, rater: str, number: int, model_id: str) -> Mark:
        sheet = self.sheets.get((number, rater))
        return Mark() if sheet is None else sheet.marks.get(model_id, Mark())

    def save(self, rater: str, number: int, model_id: str, mark: Mark) -> None:
        """
        Saves one mark to the file.

        Raises:
            ValueError: without a rater's name, and for an answer that is not shown.
        """
        if not rater.strip():
            raise ValueError("A rating needs the rater's name.")
        if number not in self.questions or model_id not in self.order(rater, number):
            raise ValueError(f"Question {number!r:.80} has no answer of {model_id!r:.80} to rate.")
        self.journal.append([Sheet(number, rater, {model_id: mark}).row(self.systems)])
        sheet = self.sheets.setdefault((number, rater), Sheet(number, rater, {}))
        sheet.marks[model_id] = mark

    def open_question(self, rater: str, after: int | None = None) -> int:
        """
        The next question after `after`, then from the first on, with an answer that the rater has not rated; without
        any, `after` itself or the first question.
        """
        numbers = list(self.questions)
        start = 0 if after is None else numbers.index(after) + 1
        for number in numbers[start:] + numbers[:start]:
            if any(self.mark(rater, number, name).level is None for name in self.order(rater, number)):
                return number
        return numbers[0] if after is None else after

    def at(self, place: int | None, otherwise: int) -> int:
        """The question at a place, counted from 1, or `otherwise`."""
        numbers = list(self.questions)
        return numbers[place - 1] if place is not None and 0 < place <= len(numbers) else otherwise

    def same_rater(self, name: str) -> str | None:
        """The rater with this name, ignoring case, if there is one."""
        raters = {rater for _, rater in self.sheets}
        return name if name in raters else next((one for one in raters if one.casefold() == name.casefold()), None)

    def rated(self, rater: str) -> list[tuple[int, int, str | None, str]]:
        """`(question, place of the answer, level, abilities)` of each rating, without names of systems."""
        return [
            (number, place, mark.level, " ".join(mark.abilities))
            for number in self.questions
            for place, name in enumerate(self.order(rater, number), 1)
            if (mark := self.mark(rater, number, name)) != Mark()
        ]

    def agreement(self) -> str:
        """The agreement of all raters so far."""
        alpha, shared = agreement(self.sheets.values())
        if alpha is None:
            return f"{shared} answers have two or more ratings: too few, or all equal, so agreement is not defined."
        return f"Krippendorff's alpha is {alpha:.2f} (at most 1) over {shared} answers with two or more ratings."

    def neighbour(self, number: int, step: int) -> int:
        numbers = list(self.questions)
        return numbers[max(0, min(numbers.index(number) + step, len(numbers) - 1))]

    def progress(self, rater: str, number: int) -> str:
        """The position of the question, and the number of rated answers."""
        everything = [(one, name) for one in self.questions for name in self.order(rater, one)]
        rated = sum(self.mark(rater, *answer).level is not None for answer in everything)
        place = f"Question {list(self.questions).index(number) + 1} of {len(self.questions)}"
        done = "All answers are rated: thank you." if rated == len(everything) else "Every click is saved at once."
        return f"{place} · {rated} of {len(everything)} answers rated by {rater} · {done}"
