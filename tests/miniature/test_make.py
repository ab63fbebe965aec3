"""The command that makes the miniature goes from packages to a repository, and on where it stopped; so its ablation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel, AutoProcessor


MAKE = Path(__file__).parents[2] / "miniature/make.py"


@pytest.mark.slow
def test_packages_become_a_repository_step_by_step(tmp_path):
    pytest.importorskip("resvg_py")

    def make(script: Path = MAKE, *options: str):
        subprocess.run([sys.executable, script, "--scale", "0.002", *options], cwd=tmp_path, check=True)

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
    make(MAKE.with_name("ablation.py"), "--seeds", "1")
    cells = json.loads((folder / "ablation/results.json").read_text())
    assert len(cells) == 5 + 3 and all(len(cell["right"]) == 14 for cell in cells)
    assert (folder / "ablation/tables.txt").read_text().count("the paper") == 6
    assert (folder / "ablation/ablation.png").stat().st_size > 10_000
