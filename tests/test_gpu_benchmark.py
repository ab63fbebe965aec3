"""The benchmark for GPUs runs through, on a CPU and with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parent.parent / "research/benchmarks/gpu.py"


@pytest.mark.slow
def test_sections_give_figures_and_the_step_for_graphs_is_the_library_s(tmp_path):
    """As on a GPU, but for graphs and compiled code."""
    file = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--json", str(file), "--only", "generate", "decode", "pretrain"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TORCH_COMPILE_DISABLE": "1"})
    rows = json.loads(file.read_text())["rows"]
    assert [row["section"] for row in rows] == 10 * ["limits"] + 4 * ["generate"] + 4 * ["decode"] + 3 * ["pretrain"]
    assert all(row["share"] > 0 for row in rows[14:])
    assert all(row["first_share"] > 0 and row["later"] == 0 for row in rows if row["section"] == "generate")
    checked = [row for row in rows if "difference" in row]
    assert len(checked) == 3
    assert all(row["difference"] < 0.01 and row["same"] == 1 for row in checked)
    steps = [row for row in rows if "s_a_step" in row]
    assert all(row["s_a_step"] > 0 and 0 < row["computed_gib"] < 0.1 for row in steps)
