"""Ratings are read with what was rated, the last word counts, and raters' agreement is Krippendorff's."""

import pytest

from transformers_owl.evaluation.rating_desk import RatingDesk
from transformers_owl.evaluation.ratings import Mark, Sheet, agreement, read_rating_files, read_ratings
from transformers_owl.journal import Journal, read_rows

from .conftest import write_rows


def read(path, questions, systems):
    return read_ratings(read_rows(path), questions, systems)


def test_sheets_come_back_as_they_were_written(tmp_path, questions, systems):
    sheets = [
        Sheet(2, "anna", {"owl:v1": Mark("B", ("IU", "OCR")), "react": Mark("A")}),
        Sheet(2, "judge, reversed", {"react": Mark(), "owl:v1": Mark()}, ("what?", "no")),
        Sheet(4, "anna", {"owl:v1": Mark("D")}),
    ]
    journal = Journal(tmp_path / "ratings.jsonl")
    journal.append(sheet.row(systems) for sheet in sheets)
    assert list(read(journal.path, questions, systems).values()) == sheets


def test_the_last_word_counts(tmp_path, questions, systems):
    journal = Journal(tmp_path / "ratings.jsonl")
    for sheet in (
        Sheet(2, "anna", {"owl:v1": Mark("B", ("IU",))}),
        Sheet(2, "anna", {"react": Mark("C")}),
        Sheet(2, "anna", {"owl:v1": Mark("A")}),
    ):
        journal.append([sheet.row(systems)])
    assert read(journal.path, questions, systems)[2, "anna"].marks == {"owl:v1": Mark("A"), "react": Mark("C")}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 99}, "line 1 rates question 99, which is not among the questions"),
        ({"marks": {"owl:v1": {"answer": "0", "level": "A"}}}, "rates another answer to question 2 than that in"),
        ({"level": "E"}, "gives the level 'E', but it must be one of A, B, C, D"),
        ({"abilities": ["IU", "RA"]}, "gives the ability RA, but question 2 needs only IU, OCR"),
        ({"rater": None}, "line 1 is not a rating: it must have `question_id`, `rater` and `marks` by system"),
        ({"marks": ["A"]}, "line 1 is not a rating"),
        ({"marks": {"owl:v1": "A"}}, "line 1 is not a rating"),
        ({"marks": {"owl:v1": {"level": "A"}}}, "rates another answer"),
    ],
)
def test_ratings_that_do_not_fit_are_named(row, message, tmp_path, questions, systems):
    mark = {
        "answer": systems["owl:v1"].digest(2),
        "level": row.pop("level", "A"),
        "abilities": row.pop("abilities", []),
    }
    row = {"question_id": 2, "rater": "anna", "marks": {"owl:v1": mark}, **row}
    path = write_rows(tmp_path / "ratings.jsonl", [{key: value for key, value in row.items() if value is not None}])
    with pytest.raises(ValueError, match=message):
        read(path, questions, systems)


def test_systems_that_are_not_asked_for_are_left_out(tmp_path, questions, systems):
    journal = Journal(tmp_path / "ratings.jsonl")
    journal.append([Sheet(2, "anna", {"owl:v1": Mark("B"), "react": Mark("C")}).row(systems)])
    only = {"react": systems["react"]}
    assert read(journal.path, questions, only)[2, "anna"].marks == {"react": Mark("C")}


def test_answers_without_a_rating_are_counted_and_named(tmp_path, questions, systems):
    journal = Journal(tmp_path / "ratings.jsonl")
    journal.append(Sheet(number, "anna", {"react": Mark("B")}).row(systems) for number in (2, 4))
    with pytest.raises(ValueError, match=r"1 of 3 answers of 'react' are not rated, the first to question 7"):
        read_rating_files([journal.path], questions, {"react": systems["react"]})
    journal.append([Sheet(7, "ben", {"react": Mark("B")}).row(systems)])
    assert len(read_rating_files([journal.path], questions, {"react": systems["react"]})) == 3


def sheets_of(levels):
    """`{rater: levels of questions 1, 2, ...}`; a dash is no rating."""
    return [
        Sheet(number, rater, {"m": Mark(level)})
        for rater, given in levels.items()
        for number, level in enumerate(given, 1)
        if level != "-"
    ]


@pytest.mark.parametrize(
    ("levels", "alpha", "twice"),
    [
        ({"anna": "ABCD", "ben": "ABCD"}, 1.0, 4),
        ({"anna": "ABCD", "ben": "AB--"}, 1.0, 2),
        # By hand: the ordinal distance of neighbouring levels with n_A = 3, n_B = 1 is ((3 + 1) / 2) ** 2 = 4, observed
        # in one of two units: D_o = 4 * 2 / 4 = 2; expected: 4 * 2 * 3 * 1 / (4 * 3) = 2; alpha = 1 - 2 / 2.
        ({"anna": "AA", "ben": "AB"}, 0.0, 2),
        # n = 4 A, 1 B, 1 D. Distances: B to D (1 + 0 + 1 - 1) ** 2 = 1, A to B 2.5 ** 2, A to D 3.5 ** 2. D_o = 2 / 6;
        # D_e = 2 * (4 * 6.25 + 4 * 12.25 + 1) / 30 = 5. Taken as equal steps it would be 0.545.
        ({"anna": "AAB", "ben": "AAD"}, 1 - 1 / 15, 3),
        ({"anna": "AA", "ben": "AA"}, None, 2),
        ({"anna": "ABCD"}, None, 0),
        ({"anna": "AB--", "ben": "--CD"}, None, 0),
        ({}, None, 0),
    ],
)
def test_agreement_is_krippendorffs_alpha_of_an_ordinal_scale(levels, alpha, twice):
    found, shared = agreement(sheets_of(levels))
    assert shared == twice
    assert found is None if alpha is None else found == pytest.approx(alpha)


def test_the_desk_shuffles_saves_at_once_and_goes_on(tmp_path, questions, systems):
    desk = RatingDesk(questions, systems, tmp_path / "ratings.jsonl")
    orders = {tuple(desk.order(f"rater {index}", 2)) for index in range(20)}
    assert orders == {("owl:v1", "react"), ("react", "owl:v1")}
    assert desk.order("anna", 1) == ["owl:v1"]
    assert desk.open_question("anna") == 1
    desk.save("anna", 1, "owl:v1", Mark("C", ("IU",)))
    first = desk.order("anna", 2)[0]
    desk.save("anna", 2, first, Mark("A"))
    desk.save("anna", 2, first, Mark("B"))
    desk.journal.close()
    again = RatingDesk(questions, systems, tmp_path / "ratings.jsonl")
    assert again.mark("anna", 1, "owl:v1") == Mark("C", ("IU",))
    assert again.mark("anna", 2, first) == Mark("B")
    assert again.order("anna", 2) == desk.order("anna", 2)
    assert (again.open_question("anna"), again.open_question("ben")) == (2, 1)
    assert again.progress("anna", 2).startswith("Question 2 of 8 · 2 of 11 answers rated by anna")
    assert (again.neighbour(8, 1), again.neighbour(8, -1), again.neighbour(1, -1)) == (8, 7, 1)


@pytest.mark.parametrize(
    ("rater", "number", "model_id"),
    [("", 1, "owl:v1"), (" \n", 1, "owl:v1"), ("anna", 99, "owl:v1"), ("anna", 1, "react")],
)
def test_only_answers_that_are_shown_are_rated_by_somebody(rater, number, model_id, tmp_path, questions, systems):
    desk = RatingDesk(questions, systems, tmp_path / "ratings.jsonl")
    with pytest.raises(ValueError, match=r"A rating needs the rater's name|has no answer of"):
        desk.save(rater, number, model_id, Mark("A"))
    assert desk.sheets == {} and list(desk.journal.rows()) == []
