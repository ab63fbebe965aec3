"""The experiment with pages: both conditions differ in `max_crops` alone, and its figures are what was counted."""

import json

import numpy as np
import pytest

from research.miniature import pages
from research.miniature.pages import CONDITIONS, HEIGHT, HELD_OUT, KINDS, LINES, TRAINING, WIDTH, compare, interval
from transformers_owl import MINIATURE, MplugOwlProcessor


def test_pages_say_what_their_lines_say():
    shown = list(pages.pages(60, HELD_OUT))
    assert [each.kind for each in shown[:4]] == [*KINDS, KINDS[0]]
    for each in shown:
        assert each.image.size == (WIDTH, HEIGHT) and len(each.exchanges) == LINES
        assert [exchange.question for exchange in each.exchanges] == [f"Read line {n}." for n in range(1, LINES + 1)]
        words, numbers = zip(*(exchange.answer.split() for exchange in each.exchanges), strict=True)
        assert len(set(words)) == LINES
        if each.kind == "receipt":
            assert words[-1] == "sum" and int(numbers[-1]) == sum(map(int, numbers[:-1]))
    again = next(pages.pages(1, HELD_OUT))
    assert again.exchanges == shown[0].exchanges and again.image.tobytes() == shown[0].image.tobytes()
    answers = {tuple(exchange.answer for exchange in each.exchanges) for each in shown}
    assert answers.isdisjoint(
        tuple(exchange.answer for exchange in each.exchanges) for each in pages.pages(60, TRAINING)
    )


@pytest.mark.parametrize(("condition", "views"), [("whole view", 1), ("cells", 1 + 3 * 2)])
def test_a_page_has_a_cell_for_each_entry(condition, views):
    processor = MplugOwlProcessor.from_pretrained(MINIATURE)
    processor.image_processor.max_crops = CONDITIONS[condition]
    assert processor.image_processor.count_views(WIDTH, HEIGHT) == views


@pytest.mark.slow
def test_conditions_differ_in_crops_alone_and_every_answer_is_counted(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pages, "HOME", tmp_path)
    pages.main(seeds=1, steps=2, count=2)
    settings = [
        json.loads((tmp_path / f"{name}-0/run.json").read_text())["settings"] for name in ("whole-view", "cells")
    ]
    differing = {name for name in settings[0] if settings[0][name] != settings[1][name]}
    assert differing == {"max_crops", "output_dir", "logging_dir"} & set(settings[0])
    written = json.loads((tmp_path / "pages.json").read_text())
    for name in CONDITIONS:
        (run,) = written["runs"][name]
        assert run["kinds"] == [*KINDS, *KINDS] and run["steps"] == 2
        assert run["right"] == compare(run["answers"], run["expected"])
        assert run["control"] == compare(run["answers"], run["expected"][3:] + run["expected"][:3])
        assert all(share > 0 for share in run["wrong_characters"])
        assert written["rows"][name]["all"][0] == pytest.approx(np.mean(run["right"]))
    printed = capsys.readouterr().out
    assert all(f"\n| {name} | " in printed for name in CONDITIONS)
    assert (tmp_path / "pages.svg").read_text().count("<svg") == 1
    monkeypatch.setattr(pages, "train", None)  # what was scored is read
    pages.main(seeds=1, steps=2, count=2)


def test_an_interval_is_of_seeds_and_pages():
    assert interval(np.ones((3, 20))) == (1, 1, 1)
    between_seeds, between_pages = np.zeros((2, 400)), np.zeros((2, 400))
    between_seeds[0] = between_pages[:, :200] = 1
    mean, low, high = interval(between_seeds)
    assert (mean, low, high) == (0.5, 0, 1)
    mean, low, high = interval(between_pages)
    assert mean == 0.5 and (low, high) == pytest.approx((0.45, 0.55), abs=0.01)


def test_marks_are_of_whole_lines():
    assert compare([["cow 47", "sum 90"]], [["cow 47", "sum 9"]]) == [[True, False]]
