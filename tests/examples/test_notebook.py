"""The notebook runs from top to bottom, as a new user would run it."""

import ast
import json
from pathlib import Path

import pytest


NOTEBOOK = Path(__file__).parents[2] / "examples/finetune_lora.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


@pytest.fixture
def in_a_copy(monkeypatch, tmp_path):
    """The folder of the notebook, with what it reads beside it; what it writes goes elsewhere."""
    root = NOTEBOOK.parents[1]
    (tmp_path / "tests").symlink_to(root / "tests")
    (tmp_path / "examples").mkdir()
    for name in ("data", "pictures"):
        (tmp_path / "examples" / name).symlink_to(root / "examples" / name)
    monkeypatch.chdir(tmp_path / "examples")


def test_all_cells_run_in_order(in_a_copy, capsys):
    """The loss falls, the answers become the captions, and adapter and merged model answer the same."""
    names: dict = {}
    for number, cell in enumerate(CELLS):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["losses"][-1] < 0.3 * names["losses"][0]
    captions = [row["messages"][-1]["content"] for row in names["rows"]]
    assert names["after"] == captions
    assert set(names["before"]).isdisjoint(captions)
    assert capsys.readouterr().out.splitlines().count(str(captions)) == 2


def test_it_is_stored_without_outputs():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert len(code) > 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert all(ast.parse("".join(cell["source"])) for cell in code)
    checkpoints = [line for cell in code for line in cell["source"] if "MAGAer13/mplug-owl-llama-7b" in line]
    assert len(checkpoints) == 1
