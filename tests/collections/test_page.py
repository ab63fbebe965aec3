"""The commands of docs/collections.md run, and its tables say what the code takes."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from shards import write_tar
from typer.testing import CliRunner

from transformers_owl import MINIATURE
from transformers_owl.cli import app
from transformers_owl.collections.inputs import BLOCK, IMAGES
from transformers_owl.collections.outputs import CAPTION, FORMATS
from transformers_owl.demo.caption import SAMPLES


ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/collections.md").read_text()
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("transformers-owl")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    for folder in ("build", "photos/below", "shards"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "examples/pictures/cat.jpg", tmp_path / "photos/below")
    shutil.copy(SAMPLES[0], tmp_path / "photos")
    for number in range(2):
        write_tar(tmp_path / f"shards/{number:05}.tar", range(2))
    (tmp_path / "prompts.txt").write_text("What?\nWhy?\n")
    monkeypatch.chdir(tmp_path)


ANSWERS = {"captions.jsonl": 2, "answers.csv": 2, "shards.parquet": 4, "people.parquet": 2, "ray.jsonl": 4}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run(line, place):
    words = [str(MINIATURE) if "/mplug-owl" in word else word for word in shlex.split(line)[1:]]
    output = words[words.index("--output") + 1].removeprefix("build/")
    if "--ray" in words:
        at = words.index("--ray")
        params = typer.main.get_command(app).commands["caption"].make_context("caption", words[1:]).params
        assert params["ray"] == words[at + 1]
        del words[at : at + 4]
    result = CliRunner().invoke(app, [*words, "--max-new-tokens", "3", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert len([row for row in result.stdout.splitlines() if ": " in row]) == ANSWERS[output]


def test_there_is_a_command_for_each_answer_that_is_counted():
    assert {shlex.split(line)[-1].removeprefix("build/") for line in COMMANDS} == set(ANSWERS)


def test_tables_name_what_there_is():
    said = re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE)
    text = " ".join(said)
    assert all(suffix in text for suffix in FORMATS)
    assert ".jpg" in text and ".jpg" in IMAGES
    assert f"`KEY.{CAPTION}`" in PAGE and f"A block is {BLOCK} images of a shard" in PAGE


def test_the_cost_is_what_the_script_computes():
    (line,) = [line for line in LINES if "--cost" in line]
    _, script, _, dollars = line.split()
    spec = importlib.util.spec_from_file_location("benchmark_of_captions", ROOT / script)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    computed = [[row[name] for name in ("ms_per_image", "hours", "dollars")] for row in benchmark.cost(float(dollars))]
    table = re.findall(r"^\| .* \| ([\d.]+) \| ([\d.]+) \| \$(\d+) \|$", PAGE, re.MULTILINE)
    assert len(table) == len(computed) == 2
    for row, wanted in zip(table, computed, strict=True):
        assert [float(each) for each in row] == [round(wanted[0], 1), round(wanted[1], 1), round(wanted[2])]
