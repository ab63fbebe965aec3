"""Models loaded over several processes have the weights, features and logits that they have on one."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import GoldenCase, tiny_config
from towers import owl_with, tower_of

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.mplug_owl.weights_mplug_owl import SplitHeads


NAMES = ["image-llama", "image-bloom", "video-llama"]
TOWERS = ["siglip_vision_model", "dinov2"]
RELEASES = tuple(GoldenCase(name).checkpoint for name in NAMES)


def loaded(script: str, processes: int, folder: Path, models: Sequence[str] = RELEASES) -> dict[str, dict]:
    """What a script beside this file finds about models, in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    words = [str(Path(__file__).with_name(script)), str(folder), *models]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_releases_are_the_same_over_processes(processes, tmp_path):
    found = loaded("loads_over_processes.py", processes, tmp_path)
    assert len(found) == 2 * len(NAMES)
    for name, each in found.items():
        assert each["other weights"] == [], name
        assert all(error <= 1e-5 for error in each["errors"].values()), (name, each["errors"])
        assert (len(each["cut"]) > 20) == (processes > 1), name


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_owls_with_towers_of_the_library_are_the_same_over_processes(processes, tmp_path):
    """Tensor parallelism leaves such a tower whole, as the library's own plans do; FSDP2 cuts it."""
    folders = [tmp_path / kind / "owl" for kind in TOWERS]
    for kind, folder in zip(TOWERS, folders, strict=True):
        owl_with(tower_of(kind)).save_pretrained(folder)
    found = loaded("loads_over_processes.py", processes, tmp_path, list(map(str, folders)))
    assert found.keys() == {f"{kind}, {way}" for kind in TOWERS for way in ("tensors", "FSDP2")}
    for name, each in found.items():
        assert each["other weights"] == [], name
        assert all(error <= 1e-5 for error in each["errors"].values()), (name, each["errors"])
        vision = [weight for weight in each["cut"] if weight.startswith("model.vision_model.")]
        assert bool(vision) == (processes > 1 and name.endswith("FSDP2")), name
        assert (len(each["cut"]) > 20) == (processes > 1), name


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_releases_are_the_same_when_deepspeed_divides_them(processes, tmp_path):
    found = loaded("loads_by_deepspeed.py", processes, tmp_path)
    assert found.keys() == set(NAMES)
    for name, each in found.items():
        assert each["other weights"] == [], name
        assert each["divided"] == each["all"] > 100, name


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_processs_rows_are_split_into_its_own_heads(processes):
    """Rows are [head][q, k, v][head_dim], cut evenly: what a process gets of each is the same cut of the whole."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = MplugOwlForConditionalGeneration(tiny_config())
    fused = torch.randn(3 * 32, 5)
    names = ["q", "k", "v"]

    def split(rows):
        return SplitHeads().convert({"fused": rows}, ["fused"], names, full_layer_name="q", model=model)

    expected = split(fused)
    for head in range(4):
        for part, name in enumerate(names):
            rows = fused[(3 * head + part) * 8 :][:8]
            assert torch.equal(expected[name][head * 8 :][:8], rows)
    for rank in range(processes):
        for name, value in split(fused.chunk(processes)[rank]).items():
            assert torch.equal(value, expected[name].chunk(processes)[rank])


def test_rows_that_cut_through_a_head_are_refused():
    with torch.device("meta"):
        model = MplugOwlForConditionalGeneration(tiny_config())
    with pytest.raises(ValueError, match=r"32 rows.*not whole heads.*transformers-owl convert"):
        SplitHeads().convert({"fused": torch.randn(96, 5)[:32]}, ["fused"], ["q", "k", "v"], "q", model=model)
