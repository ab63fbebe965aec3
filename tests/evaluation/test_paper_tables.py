"""Counts, shares and intervals are those of the ratings; the paper's figures stand beside them, marked."""

import csv
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from transformers_owl.cli import app
from transformers_owl.evaluation import paper
from transformers_owl.evaluation.paper_tables import Ratings, interval, owleval_tables, pair_table, ratio
from transformers_owl.evaluation.ratings import Mark, Sheet
from transformers_owl.evaluation.records import Answers, Question, read_owleval, read_systems
from transformers_owl.evaluation.tables import COLOURS, Row, Table, Value
from transformers_owl.journal import Journal

from .conftest import write_rows


LEVELS = {"owl:v1": "ABBACDAB", "react": "-B-C--D-"}


@pytest.fixture
def sheets(systems):
    """Anna rates everything; Ben rates Owl's first answer B, and is silent about the second."""
    everything = [
        Sheet(number, "anna", {"owl:v1": Mark(LEVELS["owl:v1"][number - 1], ("IU",) if number < 7 else ("IU", "VU"))})
        for number in range(1, 9)
    ]
    react = [Sheet(number, "anna", {"react": Mark(LEVELS["react"][number - 1], ("IU",))}) for number in (2, 4, 7)]
    ben = [Sheet(1, "ben", {"owl:v1": Mark("B")}), Sheet(2, "ben", {"owl:v1": Mark()}, ("?",))]
    return [*everything, *react, *ben]


@pytest.fixture
def tables(questions, systems, sheets):
    found = owleval_tables(Ratings(questions, systems, sheets), answered_by="react")
    return {table.name: table for table in found}


def numbers(table):
    """`{system: {column: value}}` of what was measured."""
    return {
        row.system: {column: value.value for column, value in zip(table.columns, row.values, strict=True)}
        for row in table.rows
        if row.source == "measured"
    }


def test_levels_are_counted_for_all_questions_and_for_each_group(tables):
    assert numbers(tables["figure-3"]) == {
        "owl:v1": {"A": 2.5, "B": 3.5, "C": 1, "D": 1, "A and B": 6, "no answer": 0, "no rating": 0},
        "react": {"A": 0, "B": 1, "C": 1, "D": 1, "A and B": 1, "no answer": 5, "no rating": 0},
    }
    assert tables["figure-4-single-turn"].title.endswith("(5)")
    assert numbers(tables["figure-4-single-turn"])["owl:v1"]["A"] == 0.5
    assert tables["figure-4-multi-turn"].title.endswith("(5)")
    assert numbers(tables["figure-4-multi-turn"])["owl:v1"]["B"] == 2
    assert tables["figure-15"].title == "Figure 15: questions that react answered (3)"
    assert numbers(tables["figure-15"])["owl:v1"]["A"] == 2


def test_an_ability_is_counted_where_it_is_needed(tables):
    table = tables["table-2"]
    assert table.columns == ["IU (8)", "VU (6)", "OCR (2)", "KTA (1)", "RA (2)", "MDA (3)"]
    owl = numbers(table)["owl:v1"]
    assert owl["IU (8)"] == pytest.approx(100 * 7.5 / 8)
    assert owl["VU (6)"] == pytest.approx(100 * 2 / 6)
    assert owl["OCR (2)"] == 0
    assert numbers(table)["react"]["IU (8)"] == 100 * 3 / 8


def test_answers_without_a_rating_leave_the_denominator(questions, systems, sheets):
    silent = [*sheets[1:-2], Sheet(1, "judge", {"owl:v1": Mark()}, ("?",))]
    tables = {table.name: table for table in owleval_tables(Ratings(questions, systems, silent))}
    assert numbers(tables["figure-3"])["owl:v1"]["no rating"] == 1
    assert numbers(tables["table-2"])["owl:v1"]["IU (8)"] == 100
    assert "figure-15" not in tables


def test_an_unknown_system_is_named(questions, systems, sheets):
    with pytest.raises(ValueError, match="no answers of 'MMreact': choose one of owl:v1, react"):
        owleval_tables(Ratings(questions, systems, sheets), answered_by="MMreact")


def test_intervals_are_percentiles_of_resampled_images():
    draw = np.random.default_rng(1)
    parts = [(image, float(draw.random() < 0.6)) for image in range(40) for _ in range(1 + image % 3)]
    value = interval(parts, 100)
    sums = {image: [number for own, number in parts if own == image] for image in range(40)}
    totals = np.array([(sum(numbers), len(numbers)) for numbers in sums.values()])
    chosen = totals[draw.integers(0, 40, (20_000, 40))].sum(axis=1)
    low, high = np.percentile(100 * chosen[:, 0] / chosen[:, 1], [2.5, 97.5])
    assert value.value == pytest.approx(100 * np.mean([number for _, number in parts]))
    assert (value.low, value.high) == (pytest.approx(low, abs=1), pytest.approx(high, abs=1))
    assert high - low > 10


@pytest.mark.parametrize(("pairs", "expected"), [([(1, 2)], Value(50)), ([(1, 1)] * 5, Value(100, 100, 100))])
def test_intervals_at_the_edges(pairs, expected):
    assert ratio(pairs, 100) == expected


def full_size(tmp_path):
    """82 made-up questions that need as many abilities as the published ones."""
    names = list(paper.NEEDED)
    return {
        number: Question(
            number,
            f"What {number}?",
            tmp_path / f"{min(number, 50)}.jpg",
            tuple(name for name in names if number <= paper.NEEDED[name]),
            ("single_turn",) if number <= 50 else ("multi_turn",),
        )
        for number in range(1, 83)
    }


def test_the_papers_figures_stand_beside_a_full_evaluation_and_are_marked(tmp_path):
    questions = full_size(tmp_path)
    systems = {"m": Answers(tmp_path, "m", dict.fromkeys(questions, "text"))}
    sheets = [Sheet(number, "anna", {"m": Mark("A", one.abilities)}) for number, one in questions.items()]
    tables = {table.name: table for table in owleval_tables(Ratings(questions, systems, sheets))}
    published = [row for row in tables["table-2"].rows if row.source == "paper"]
    assert [row.label for row in published][-2:] == ["r5 mPLUG-Owl (paper)", "MiniGPT-4 (paper)"]
    assert str(published[-2].values[1]) == "95.2"
    assert [str(value) for value in tables["table-2"].rows[0].values] == ["100 [100, 100]"] * 6
    figure = [row for row in tables["figure-3"].rows if row.source == "paper"]
    assert {row.system: str(row.values[4]) for row in figure} == {"mPLUG-Owl": "66", "MiniGPT-4": "54"}
    text = tables["table-2"].as_text()
    assert "r5 mPLUG-Owl (paper)" in text
    assert "VU (63)" in text


def test_the_papers_figures_stay_away_from_other_questions(tables):
    assert {row.source for table in tables.values() for row in table.rows} == {"measured"}


def test_the_papers_table_3_is_consistent():
    ratios = {name: round(100 * one / other, 2) for name, (one, other) in paper.TABLE_3.items()}
    assert list(ratios.values()) == [80.93, 89.47, 86.07, 86.71]


def test_scores_are_summed_against_the_references(tmp_path):
    numbers_of = dict.fromkeys(range(80), "text")
    reference, mine = Answers(tmp_path, "chatgpt", numbers_of), Answers(tmp_path, "mine", numbers_of)
    scores = {"in order": (6, 8), "reversed": (7, 9)}
    sheets = [
        Sheet(number, order, {"mine": Mark(score=one), "chatgpt": Mark(score=other)})
        for order, (one, other) in scores.items()
        for number in range(2, 80)
    ]
    sheets += [
        Sheet(1, "in order", {"mine": Mark(score=1), "chatgpt": Mark(score=10)}),
        Sheet(1, "reversed", {"mine": Mark(), "chatgpt": Mark()}, ("?",)),
        Sheet(0, "in order", {"mine": Mark(), "chatgpt": Mark()}, ("?",)),
        Sheet(5, "in order", {"other": Mark(score=1), "chatgpt": Mark(score=10)}),
    ]
    table = pair_table({"mine": mine}, reference, sheets)
    own, against, share, missing = table.rows[0].values
    assert (own.value, against.value, missing.value) == (78 * 6.5 + 1, 78 * 8.5 + 10, 1)
    assert share.value == pytest.approx(100 * own.value / against.value)
    assert share.low < share.value < share.high
    assert table.rows[-1].label == "mPLUG-Owl (paper)"
    assert str(table.rows[-1].values[2]) == "86.7"


def test_the_command_writes_text_csv_and_images(folder, answer_files, systems, sheets, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "170")
    journal = Journal(tmp_path / "ratings.jsonl")
    journal.append(sheet.row(systems) for sheet in sheets)
    arguments = ["score", "--owleval", str(folder), "--ratings", str(journal.path), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, *map(str, answer_files), "--answered-by", "react"])
    assert result.exit_code == 0, result.output
    names = ("figure-3", "figure-4-single-turn", "figure-4-multi-turn", "figure-15", "table-2")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "scores.txt", *(f"{name}.{kind}" for name in names for kind in ("csv", "png", "svg")),
    }  # fmt: skip
    assert (tmp_path / "out/scores.txt").read_text() == result.stdout
    monkeypatch.setenv("COLUMNS", "90")
    narrow = CliRunner().invoke(app, [*arguments, *map(str, answer_files)]).stdout
    assert 90 >= max(map(len, narrow.partition("Rated by")[0].splitlines())) > 80
    assert "Rated by anna: 8 questions" in result.stdout
    with (tmp_path / "out/figure-3.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["system"], rows[0]["source"], float(rows[0]["A"])) == ("owl:v1", "measured", 2.5)
    assert 0 <= float(rows[0]["A low"]) < 2.5 < float(rows[0]["A high"]) <= 8
    bars, legend = shares_of_levels(tmp_path / "out/figure-3.png")
    assert bars == pytest.approx({"A": 31.25, "B": 43.75, "C": 12.5, "D": 12.5}, abs=1)
    assert legend == pytest.approx({"A": 50, "D": 50}, abs=1)


def shares_of_levels(path):
    """Per cent of each level's colour in the topmost and in the lowest row of pixels that have A's, left to right."""
    levels = {tuple(bytes.fromhex(colour[1:])): name for name, colour in COLOURS.items() if len(name) == 1}
    with PIL.Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows = [[levels[tuple(pixel)] for pixel in row.tolist() if tuple(pixel) in levels] for row in pixels]
    with_a = [row for row in rows if "A" in row]
    return [{name: 100 * row.count(name) / len(row) for name in dict.fromkeys(row)} for row in (with_a[1], with_a[-2])]


def test_a_number_is_shown_with_one_digit_and_its_interval():
    table = Table("t", "T", ["x"], [Row("m", [Value(12.34, 10, 15.55)]), Row("n", [None], "paper")])
    assert str(table.rows[0].values[0]) == "12.3 [10, 15.6]"
    assert table.as_csv() == "system,source,x,x low,x high\nm,measured,12.34,10,15.55\nn,paper,,,\n"


def test_mistakes_end_the_command_with_a_message(folder, answer_files, tmp_path):
    ratings = write_rows(tmp_path / "ratings.jsonl", [{"question_id": 99, "rater": "anna", "marks": {}}])
    arguments = ["score", "--owleval", str(folder), "--ratings", str(ratings), "--output", str(tmp_path / "out")]
    for wrong, message in (
        ([str(answer_files[0])], "rates question 99"),
        ([str(tmp_path / "none.jsonl")], "none.jsonl"),
        ([str(answer_files[0]), "--reference", "x"], "--reference goes with --vicuna"),
    ):
        result = CliRunner().invoke(app, [*arguments, *wrong])
        assert result.exit_code == 1
        assert message in result.stderr
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, [*arguments, "x", "--answerd-by", "y"]).exit_code == 2


@pytest.mark.skipif("OWLEVAL" not in os.environ, reason="OWLEVAL does not name the folder of the published OwlEval")
def test_the_published_files_give_the_papers_denominators():
    folder = Path(os.environ["OWLEVAL"])
    questions = read_owleval(folder)
    systems = read_systems(sorted((folder / "answer").iterdir()), questions)
    sheets = [
        Sheet(number, "anna", {name: Mark("B", one.abilities) for name, own in systems.items() if own.texts[number]})
        for number, one in questions.items()
    ]
    tables = {table.name: table for table in owleval_tables(Ratings(questions, systems, sheets), "MMreact")}
    assert tables["figure-15"].title == "Figure 15: questions that MMreact answered (68)"
    assert tables["table-2"].columns == ["IU (82)", "VU (63)", "OCR (30)", "KTA (24)", "RA (35)", "MDA (20)"]
    assert numbers(tables["figure-3"])["mPLUG_Owl_7b:v1"]["A and B"] == 82
    groups = [tables[f"figure-4-{group}-turn"].title for group in ("single", "multi")]
    assert [title[-4:] for title in groups] == ["(50)", "(52)"]
