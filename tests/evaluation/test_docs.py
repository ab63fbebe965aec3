"""The commands of docs/evaluation.md run, in their order, on a small OwlEval."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from transformers_owl.cli import app
from transformers_owl.evaluation.paper import NEEDED
from transformers_owl.evaluation.rubric import ABILITIES

from . import small_models
from .conftest import SYSTEMS, write_rows
from .test_judging import Judge, Scorer


PAGE = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
RELEASE = "MAGAer13/mplug-owl-llama-7b"


def commands():
    lines = [line for block in PAGE.split("```bash\n")[1:] for line in block.split("```")[0].splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("transformers-owl")]


@pytest.fixture
def place(folder, llama, tmp_path_factory, monkeypatch):
    """A folder with what the page names; MM-REACT is the second small system."""
    here = tmp_path_factory.mktemp("docs")
    (here / "OwlEval").symlink_to(folder)
    (here / "build").mkdir()
    write_rows(here / "question.jsonl", [{"question_id": n, "text": f"Why {n}?"} for n in (1, 2)])
    write_rows(here / "chatgpt.jsonl", [{"question_id": n, "text": "So.", "model_id": "chatgpt"} for n in (1, 2)])
    monkeypatch.chdir(here)
    files = " ".join(f"OwlEval/answer/{name}.jsonl" for name in ("owl", "react"))
    return lambda word: {
        RELEASE: llama.checkpoint, "OwlEval/answer/*.jsonl": files, "MMreact": list(SYSTEMS)[1],
    }.get(word, word).split()  # fmt: skip


def test_the_commands_of_the_page_run(place):
    ran = []
    for words in commands():
        judge = Scorer() if "--reference" in words else Judge()
        reply = judge.reply if words[0] == "judge" else (lambda messages: "An answer.")
        with small_models.endpoint(reply) as (url, _):
            words = [part for word in words for part in place(word.replace("http://localhost:8000/v1", url))]
            if words[0] == "rate":  # runs until it is stopped: see test_rating_page.py
                continue
            options = ["--max-new-tokens", "3"] if words[0] == "answer" else []
            result = CliRunner().invoke(app, [*words, *options])
        assert result.exit_code == 0, result.output
        ran.append(words[0])
    assert ran == ["answer", "answer", "judge", "score", "answer", "judge", "score"]
    assert Path("build/scores/figure-15.png").exists()
    assert "against" not in Path("build/scores/scores.txt").read_text()
    assert "chatgpt's score" in Path("build/table-3/scores.txt").read_text()


def test_the_page_names_all_abilities_and_their_denominators():
    assert list(NEEDED) == list(ABILITIES)
    assert "They occur 82, 63, 30, 24, 35 and 20 times" in PAGE.replace("\n", " ")
    assert list(NEEDED.values()) == [82, 63, 30, 24, 35, 20]
