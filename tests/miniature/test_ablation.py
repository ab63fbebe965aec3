"""The ablation's rows stand beside the paper's, its figures are means of what was counted, and it goes on."""

import json

import numpy as np
import pytest

from research.miniature import ablation
from research.miniature.ablation import GROUPS, PARADIGMS, TABLE, by_ability, report, run
from research.miniature.score import ASKED
from transformers_owl.evaluation.paper import NEEDED, TABLE_2
from transformers_owl.training import STAGES


def test_every_row_is_one_of_the_papers_and_trains_by_stages_of_the_package():
    assert {cell.title for cell in TABLE.values()} <= set(TABLE_2)
    for cell in (*TABLE.values(), *PARADIGMS.values()):
        assert {cell.first, cell.second} - {""} <= set(STAGES)


def test_the_papers_abilities_are_means_of_those_that_the_score_counts():
    assert list(GROUPS) == list(NEEDED)
    members = [ability for group in GROUPS.values() for ability in group]
    assert len(set(members)) == len(members) and set(members) <= set(ASKED)
    right = dict.fromkeys(members, 0.0) | {"digits": 0.5, "words": 0.25, "format": 1.0}
    assert by_ability(right) == [100, 0, 37.5, 0, 0, 0]


def test_the_table_has_mean_and_spread_of_the_seeds_and_the_papers_figures_below():
    seeds = np.array([[10.0, 20, 30, 40, 50, 60], [20.0, 20, 30, 40, 50, 80]])
    lines = [line.replace("│", " ").split() for line in report("", {"r5 mPLUG-Owl": seeds}).splitlines()]
    ours, paper = (" ".join(line) for line in lines if {"r5", "paper"} & set(line))
    assert ours == "r5 mPLUG-Owl 15.0 ± 5.0 20.0 ± 0.0 30.0 ± 0.0 40.0 ± 0.0 50.0 ± 0.0 70.0 ± 10.0 37.5"
    assert paper == "the paper 100.0 95.2 56.7 87.5 80.0 95.0 85.7"
    assert "±" not in report("", {"r5 mPLUG-Owl": seeds[:1]})


@pytest.mark.parametrize(
    ("cell", "name"),
    [("r1", "pretrain-none-none"), ("r2", "fresh-instruct-multimodal-text"), ("r3", "pretrain-instruct-text")],
)
def test_a_cell_that_was_scored_is_read(cell, name, tmp_path, monkeypatch):
    """What lies there is not trained again: with no parts at hand, training would fail."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "HOME", tmp_path)
    (tmp_path / "seed-7").mkdir()
    (tmp_path / f"seed-7/{name}.json").write_text(json.dumps({"right": {"name": 0.25}}))
    assert run(TABLE[cell], 7, 1.0) == {"name": 0.25}
    with pytest.raises(OSError):
        run(TABLE[cell], 8, 1.0)
