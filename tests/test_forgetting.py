"""The benchmark of forgetting: its recipes mix as they say, its weights lie where they should, its shares are right."""

import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml

from research.miniature.drawings import Drawings, things
from research.miniature.scenes import World
from transformers_owl import MINIATURE
from transformers_owl.training.arguments import parse_recipe


sys.path.insert(0, str(Path(__file__).parent.parent / "research/benchmarks"))
import forgetting


class Squares(Drawings):
    """A coloured square for each thing, in place of what a registry would have to send."""

    def __init__(self):
        random = np.random.default_rng(0)
        names = [thing.name for thing in things()]
        pixels = (np.append(random.integers(0, 256, 3), 255).astype(np.uint8) for _ in names)
        squares = (PIL.Image.fromarray(np.broadcast_to(colour, (8, 8, 4)).copy()) for colour in pixels)
        self.images = {("noto", name): square for name, square in zip(names, squares, strict=True)}
        self.styles = dict.fromkeys(names, ("noto",))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("forgetting") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "NEW_ROWS", 24)
        patch.setattr(forgetting, "OLD_ROWS", 24)
        forgetting.write_data(folder, World(Squares(), shown=False), World(Squares(), shown=True), seed=0)
    return folder


@pytest.mark.parametrize("rehearsed", forgetting.REHEARSED)
def test_a_recipe_mixes_as_it_says(data, tmp_path, rehearsed):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(forgetting.recipe(data, tmp_path / "out", rehearsed, 80, 3)))
    owl, args = parse_recipe(file, [])
    groups = owl.groups()
    weights = {name: group.weight for name, group in groups.items()}
    assert weights.get("old", 0) / sum(weights.values()) == rehearsed / 100
    assert (owl.model, owl.stage, args.seed, args.max_steps) == (MINIATURE, "instruct", 3, 80)
    assert all(len(group.data) == 24 for group in groups.values())


def test_new_rows_show_what_training_held_back_and_old_rows_what_it_showed(data):
    held_back = {thing.name for thing in things() if not thing.shown}
    answers = {
        name: [message["content"] for row in rows for message in row["messages"] if message["role"] == "assistant"]
        for name, rows in ((name, [yaml.safe_load(line) for line in (data / f"{name}.jsonl").open()])
                           for name in ("new", "old"))
    }  # fmt: skip
    assert len(answers["new"]) == 24 and set(answers["new"]) <= held_back
    assert len(answers["old"]) > 48 and not held_back & set(answers["old"])


@pytest.mark.slow
def test_weights_are_tuned_averaged_and_scaled(data, tmp_path, monkeypatch):
    """By two steps: the scales lie on the line from before to after, the abstractor's weights as well as LoRA's."""
    monkeypatch.setattr(forgetting, "EVERY", 1)
    (tmp_path / "data").symlink_to(data)
    model = forgetting.Answerer(MINIATURE).model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = forgetting.ways(tmp_path, before, 0, steps=2, seed=0)
    assert list(found) == [
        "new rows alone", "new rows alone, 0.75 of the change", "new rows alone, 0.5 of the change",
        "new rows alone, 0.25 of the change", "new rows alone, mean of the checkpoints",
    ]  # fmt: skip
    after = found["new rows alone"]
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(".abstractor." in name for name in moved) and any(".language_model." in name for name in moved)
    assert not any(".vision_model." in name for name in moved)
    for scale in forgetting.SCALES:
        for name in moved:
            change = found[f"new rows alone, {scale} of the change"][name] - before[name]
            assert torch.allclose(change, scale * (after[name] - before[name]), atol=1e-6), name
    first = forgetting.merged(tmp_path / "old-0/checkpoint-1")
    mean = found["new rows alone, mean of the checkpoints"]
    assert all(torch.allclose(mean[name], (first[name] + after[name]) / 2, atol=1e-6) for name in moved)
    rehearsed = forgetting.ways(tmp_path, before, 50, steps=2, seed=0)
    assert list(rehearsed) == [
        "50 % old rows", "50 % old rows, 0.75 of the change", "50 % old rows, 0.5 of the change",
    ]  # fmt: skip
    assert any(not torch.equal(rehearsed["50 % old rows"][name], after[name]) for name in moved)
    model.load_state_dict(after)


def test_kept_is_counted_among_what_was_right_before():
    before = {"name": np.array([1.0, 1, 0]), "words": np.array([1.0, 1])}
    after = {"name": np.array([1.0, 0, 1]), "words": np.array([0.0, 1])}
    assert forgetting.kept(before, after) == 0.5
    assert forgetting.kept(before, before) == 1


def test_the_table_has_means_and_ranges():
    rows = [
        {"way": "new rows alone", "seed": seed, "kept": kept, "learned": 1.0} for seed, kept in enumerate((0.4, 0.5))
    ]
    line = forgetting.table(rows).splitlines()[1]
    assert " ".join(line.split()) == "new rows alone 45 (40 to 50) 100 (100 to 100)"
