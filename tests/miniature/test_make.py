"""The command that makes the miniature goes from packages to a repository, and on where it stopped; so its ablation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel, AutoProcessor

from research.miniature.make import made


ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_packages_become_a_repository_step_by_step(tmp_path):
    pytest.importorskip("resvg_py")

    def make(name: str = "make", *options: str):
        command = [sys.executable, "-m", f"research.miniature.{name}", "--scale", "0.002", *options]
        subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    make()
    folder = tmp_path / "build/miniature"
    made = folder / "miniature-owl"
    model = AutoModel.from_pretrained(made, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(made, trust_remote_code=True)
    assert (made / "model.safetensors").stat().st_size < 32 * 2**20
    assert model.config.image_token_id == processor.image_token_id
    times = json.loads((folder / "times.json").read_text())
    assert list(times) == [
        "tokenizer", "language_model", "vision", "fresh", "captions", "conversations", "clips", "watching",
        "pretrain", "instruct", "merged", "miniature-owl",
    ]  # fmt: skip
    written = (folder / "pretrain/model.safetensors").stat().st_mtime_ns
    (made / "model.safetensors").unlink()
    made.rename(folder / "miniature-owl.unfinished")
    make()
    assert (made / "model.safetensors").exists()
    assert (folder / "pretrain/model.safetensors").stat().st_mtime_ns == written
    make("ablation", "--seeds", "1")
    cells = json.loads((folder / "ablation/results.json").read_text())
    assert len(cells) == 5 + 3 and all(len(cell["right"]) == 14 for cell in cells)
    assert (folder / "ablation/tables.txt").read_text().count("the paper") == 6
    assert (folder / "ablation/ablation.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ablation", "attends", "make", "samples", "score", "ship", "smollm2"])
def test_every_command_has_a_help_text(name):
    command = [sys.executable, "-m", f"research.miniature.{name}", "--help"]
    assert "Usage: python -m research.miniature" in subprocess.check_output(command, text=True, cwd=ROOT)


def test_a_missing_part_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"build/miniature/vision is missing: run `python -m research"):
        made("vision")
    (tmp_path / "build/miniature/vision").mkdir(parents=True)
    assert made("vision").is_dir()
