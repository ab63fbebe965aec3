"""The notebooks run from top to bottom, as a new user would run them, and are stored with their outputs."""

import ast
import json
from pathlib import Path

import matplotlib
import pytest


ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def code_of(notebook: Path) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a notebook in its folder, with what it reads beside it; what it writes goes elsewhere."""
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "examples").mkdir()
    for name in ("data", "pictures"):
        (tmp_path / "examples" / name).symlink_to(ROOT / "examples" / name)
    monkeypatch.chdir(tmp_path / "examples")
    matplotlib.use("agg")

    def run(name: str) -> dict:
        names: dict = {}
        for number, cell in enumerate(code_of(ROOT / f"examples/{name}.ipynb")):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        return names

    return run


@pytest.mark.slow
def test_captions_are_learned_and_adapter_and_merged_model_answer_the_same(run, capsys):
    names = run("finetune_lora")
    assert names["losses"][-1] < 0.3 * names["losses"][0]
    assert names["after"] == names["captions"]
    assert set(names["before"]).isdisjoint(names["captions"])
    assert capsys.readouterr().out.splitlines().count(str(names["captions"])) == 2


def test_what_is_inside_is_shown(run):
    names = run("look_inside")
    assert names["answers"] == ["castle", "octopus"]
    assert names["similarity"].argmax(1).tolist() == [0, 1, 2, 3, 4]
    assert names["chances"][0] > 50 > sum(names["chances"][1:])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stored_in_order_and_small(notebook):
    cells = code_of(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(ast.parse("".join(cell["source"])) for cell in cells)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert notebook.stat().st_size < 450_000
