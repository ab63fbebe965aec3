"""Who rates what next, under which name, and what was said so far."""

import pytest

from transformers_owl.evaluation.rating_desk import RatingDesk
from transformers_owl.evaluation.ratings import Mark


@pytest.fixture
def desk(questions, systems, tmp_path):
    return RatingDesk(questions, systems, tmp_path / "ratings.jsonl")


def rate(desk, rater, number, level="A"):
    for name in desk.order(rater, number):
        desk.save(rater, number, name, Mark(level))


def test_the_next_open_question_is_looked_for_from_here_on(desk, questions):
    numbers = list(questions)
    assert [desk.open_question("anna", number) for number in numbers] == [*numbers[1:], numbers[0]]
    rate(desk, "anna", numbers[1])
    assert desk.open_question("anna", numbers[0]) == numbers[2]
    for number in numbers[2:]:
        rate(desk, "anna", number)
    assert desk.open_question("anna", numbers[3]) == numbers[0]
    rate(desk, "anna", numbers[0])
    assert desk.open_question("anna", numbers[3]) == numbers[3]
    assert desk.open_question("ben") == numbers[0]


def test_questions_are_found_by_their_place(desk, questions):
    numbers = list(questions)
    assert [desk.at(place, numbers[2]) for place in (1, len(numbers), 0, -1, len(numbers) + 1, None)] == [
        numbers[0], numbers[-1], *[numbers[2]] * 4
    ]  # fmt: skip


def test_names_that_differ_by_case_are_one_question_away(desk, questions):
    assert desk.same_rater("anna") is None
    rate(desk, "Anna", next(iter(questions)))
    assert [desk.same_rater(name) for name in ("Anna", "anna", "ANNA", "Ann")] == ["Anna", "Anna", "Anna", None]
    rate(desk, "anna", next(iter(questions)))
    assert [desk.same_rater(name) for name in ("Anna", "anna")] == ["Anna", "anna"]


def test_unfinished_ratings_are_exported_blind_and_agree(desk, questions, systems):
    assert desk.rated("anna") == []
    assert desk.agreement().startswith("0 answers")
    numbers = list(questions)
    for rater in ("anna", "ben"):
        for place, number in enumerate(numbers[:3]):
            rate(desk, rater, number, "ABD"[place])
    rows = desk.rated("anna")
    assert [(number, level) for number, _, level, _ in rows] == [
        (number, "ABD"[place]) for place, number in enumerate(numbers[:3]) for _ in desk.order("anna", number)
    ]
    assert not any(name in str(rows) for name in systems)
    assert desk.agreement().startswith(f"Krippendorff's alpha is 1.00 (at most 1) over {len(rows)} answers")
