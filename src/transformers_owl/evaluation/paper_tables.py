"""The paper's Figures 3, 4 and 15 and Tables 2 and 3 from ratings, with bootstrap intervals."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy import stats

from . import paper
from .ratings import Mark, Sheet, agreement, read_rating_files
from .records import Answers, Question, read_answers
from .rubric import ABILITIES, LEVELS
from .tables import Row, Table, Value


RATED = (*LEVELS, "A and B")
UNRATED = ("no answer", "no rating")
COUNTS = (*RATED, *UNRATED)
RESAMPLES = 10_000


class Ratings:
    """The marks of all raters by system and question, with equal weight."""

    def __init__(self, questions: dict[int, Question], systems: Mapping[str, Answers], sheets: Sequence[Sheet]):
        self.questions = questions
        self.systems = systems
        self.marks = {
            (model_id, number): [
                sheet.marks[model_id]
                for sheet in sheets
                if sheet.question_id == number and model_id in sheet.marks and sheet.marks[model_id].level is not None
            ]
            for model_id in systems
            for number in questions
        }

    def levels(self, model_id: str, number: int) -> dict[str, float]:
        """An answer's contribution to each of `COUNTS`: with several raters, the share of each level."""
        added = dict.fromkeys(COUNTS, 0.0)
        marks = self.marks[model_id, number]
        if self.systems[model_id].texts[number] is None:
            added["no answer"] = 1
        elif not marks:
            added["no rating"] = 1
        else:
            for mark in marks:
                added[str(mark.level)] += 1 / len(marks)
            added["A and B"] = added["A"] + added["B"]
        return added

    def shows(self, model_id: str, number: int, ability: str) -> float | None:
        """The share of raters who found the ability in the answer; `None` without a rating."""
        if self.systems[model_id].texts[number] is None:
            return 0.0
        marks = self.marks[model_id, number]
        return fmean(ability in mark.abilities for mark in marks) if marks else None


def interval(parts: Sequence[tuple[object, float]], scale: float) -> Value:
    """
    `scale` times the mean, with its 95 % bootstrap interval over 10,000 resamples.

    Args:
        parts (`Sequence[tuple[object, float]]`): Values, each with its group. A group, such as the questions about one
            image, is resampled as a whole.
        scale (`float`): Factor, such as 100 for per cent.
    """
    if not parts:
        return Value(float("nan"))
    groups: dict[object, list[float]] = {}
    for group, number in parts:
        groups.setdefault(group, []).append(number)
    return ratio([(sum(numbers), len(numbers)) for numbers in groups.values()], scale)


def ratio(pairs: Sequence[tuple[float, float]], scale: float) -> Value:
    """`scale` times the ratio of the two sums, with its 95 % interval over the pairs, if there are several."""
    above, below = np.array(pairs, dtype=float).T

    def of_sums(above, below, axis):
        return scale * above.sum(axis) / below.sum(axis)

    value = float(of_sums(above, below, -1))
    if len(pairs) < 2:
        return Value(value)
    found = stats.bootstrap(
        (above, below), of_sums, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile", rng=0
    ).confidence_interval
    return Value(value, float(found.low), float(found.high))


def score_owleval(
    questions: dict[int, Question], systems: Mapping[str, Answers], ratings: Iterable[Path], answered_by: str | None
) -> tuple[list[Table], list[str]]:
    """The tables of [`owleval_tables`] from ratings files, and notes: who rated, and how well they agree."""
    sheets = read_rating_files(ratings, questions, systems)
    alpha, twice = agreement(sheets)
    notes = [
        *_rater_notes(sheets),
        "Krippendorff's alpha of the levels (ordinal): "
        + (f"{alpha:.3f}, over {twice} answers with two or more ratings" if alpha is not None else "not defined here"),
        "In brackets: 95 % bootstrap intervals over images. Rows marked (paper) are the paper's published figures.",
    ]
    return owleval_tables(Ratings(questions, systems, sheets), answered_by), notes


def score_pairs(
    questions: dict[int, Question], systems: Mapping[str, Answers], reference: Path, ratings: Iterable[Path]
) -> tuple[list[Table], list[str]]:
    """Table 3 from a judge's scores, and notes as in [`score_owleval`]."""
    other = read_answers(reference, questions)
    sheets = read_rating_files(ratings, questions, {**systems, other.model_id: other})
    notes = [
        *_rater_notes(sheets),
        "In brackets: 95 % bootstrap intervals over questions. Rows marked (paper) are the paper's published figures.",
    ]
    return [pair_table(systems, other, sheets)], notes


def _rater_notes(sheets: Sequence[Sheet]) -> list[str]:
    """One line per rater: the number of questions, and of a judge's malformed replies."""
    notes = []
    for rater in sorted({sheet.rater for sheet in sheets}):
        own = [sheet for sheet in sheets if sheet.rater == rater]
        unread = [sheet for sheet in own if sheet.replies and all(mark == Mark() for mark in sheet.marks.values())]
        retried = sum(len(sheet.replies) - 1 for sheet in own if len(sheet.replies) > 1 and sheet not in unread)
        malformed = f"; malformed: {len(unread)} for good, {retried} more before a good one" if own[0].replies else ""
        notes.append(f"Rated by {rater}: {len(own)} questions{malformed}")
    return notes


def owleval_tables(ratings: Ratings, answered_by: str | None = None) -> list[Table]:
    """
    Figures 3 and 4, Table 2, and with `answered_by` Figure 15: the questions that this system answered.

    Raises:
        ValueError: if `answered_by` is not one of the systems.
    """
    questions = ratings.questions
    groups = [
        ("figure-3", "Figure 3: all questions", list(questions)),
        ("figure-4-single-turn", "Figure 4: single-turn questions", _in_group(questions, "single_turn")),
        ("figure-4-multi-turn", "Figure 4: multi-turn questions", _in_group(questions, "multi_turn")),
    ]
    if answered_by is not None:
        if answered_by not in ratings.systems:
            raise ValueError(f"There are no answers of '{answered_by}': choose one of {', '.join(ratings.systems)}.")
        answered = [number for number, text in ratings.systems[answered_by].texts.items() if text is not None]
        groups.append(("figure-15", f"Figure 15: questions that {answered_by} answered", answered))
    figures = [_count_table(ratings, *group) for group in groups if group[2]]
    return [*figures, _ability_table(ratings)]


def _in_group(questions: dict[int, Question], group: str) -> list[int]:
    return [number for number, question in questions.items() if group in question.groups]


def _count_table(ratings: Ratings, name: str, title: str, numbers: list[int]) -> Table:
    rows = []
    for model_id in ratings.systems:
        added = [(ratings.questions[number].image, ratings.levels(model_id, number)) for number in numbers]
        values = [interval([(group, one[count]) for group, one in added], len(numbers)) for count in RATED]
        values += [Value(sum(one[count] for _, one in added)) for count in UNRATED]
        rows.append(Row(model_id, values))
    published = paper.FIGURE_3 if name == "figure-3" and len(numbers) == 82 else {}
    for system, counts in published.items():
        rows.append(Row(system, [Value(counts[count]) if count in counts else None for count in COUNTS], "paper"))
    return Table(name, f"{title} ({len(numbers)})", list(COUNTS), rows)


def _ability_table(ratings: Ratings) -> Table:
    needing = {
        ability: [number for number, question in ratings.questions.items() if ability in question.abilities]
        for ability in ABILITIES
    }
    rows = []
    for model_id in ratings.systems:
        values = []
        for ability, numbers in needing.items():
            shown = [(ratings.questions[number].image, ratings.shows(model_id, number, ability)) for number in numbers]
            values.append(interval([(group, share) for group, share in shown if share is not None], 100))
        rows.append(Row(model_id, values))
    counts = {ability: len(numbers) for ability, numbers in needing.items()}
    if counts == paper.NEEDED:
        rows += [Row(system, [Value(share) for share in shares], "paper") for system, shares in paper.TABLE_2.items()]
    columns = [f"{ability} ({count})" for ability, count in counts.items()]
    title = "Table 2: answers that show an ability, per cent of the questions that need it"
    return Table("table-2", title, columns, rows, unit="per cent of the questions")


def pair_table(systems: Mapping[str, Answers], reference: Answers, sheets: Sequence[Sheet]) -> Table:
    """
    Table 3: sums of a judge's scores for each system and the reference, and their ratio. Orders and judges have equal
    weight; a question with only malformed replies is left out and counted.
    """
    rows = []
    for answers in systems.values():
        pairs, missing = [], 0
        about = [sheet for sheet in sheets if set(sheet.marks) == {answers.model_id, reference.model_id}]
        for number in reference.texts:
            scores = [
                (sheet.marks[answers.model_id].score, sheet.marks[reference.model_id].score)
                for sheet in about
                if sheet.question_id == number
            ]
            read = [(one, other) for one, other in scores if one is not None and other is not None]
            if read:
                pairs.append((fmean(one for one, _ in read), fmean(other for _, other in read)))
            missing += not read
        if not pairs:
            raise ValueError(f"There are no scores of '{answers.model_id}' against '{reference.model_id}'.")
        sums = [Value(sum(one for one, _ in pairs)), Value(sum(other for _, other in pairs))]
        rows.append(Row(answers.model_id, [*sums, ratio(pairs, 100), Value(missing)]))
    if len(reference.texts) == 80:
        for system, (one, other) in paper.TABLE_3.items():
            rows.append(Row(system, [Value(one), Value(other), Value(100 * one / other), None], "paper"))
    columns = ["score", f"{reference.model_id}'s score", "per cent", "no rating"]
    return Table("table-3", f"Table 3: scores against {reference.model_id}'s", columns, rows)
