"""FSDP2 and DeepSpeed's ZeRO-3 train as DDP does: two processes on CPU, the command's own Trainer."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_distributed import conversation, png

from transformers_owl import MplugOwlForConditionalGeneration


EXAMPLES = Path(__file__).parents[2] / "examples/distributed"
STEPS = 4
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install deepspeed"
)
KINDS = ["fsdp2", pytest.param("zero3", marks=needs_deepspeed)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, llama_model, llama_processor):
    """A recipe whose micro-batches often have no image, with accumulation, clipping and a schedule."""
    folder = tmp_path_factory.mktemp("sharded")
    model = MplugOwlForConditionalGeneration(llama_model.config)
    model.load_state_dict(llama_model.state_dict())
    model.config.visual_abstractor_config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(folder / "model")
    llama_processor.save_pretrained(folder / "model")
    for number in range(0, 18, 3):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / "mixed.jsonl").write_text("\n".join(json.dumps(conversation(number)) for number in range(18)))
    recipe = {
        "model": str(folder / "model"), "lora_dropout": 0.0, "max_steps": STEPS, "save_steps": 2, "logging_steps": 1,
        "data": {"mixed": {"sources": [{"format": "messages", "path": str(folder / "mixed.jsonl")}]}},
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 2.0, "weight_decay": 0.1,
        "optim": "sgd", "learning_rate": 0.05, "warmup_steps": 1, "report_to": "none", "disable_tqdm": True, "seed": 3,
        "peak_tflops": 1.0,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    zero3 = json.loads((EXAMPLES / "zero3.json").read_text())
    del zero3["optimizer"]  # AdamW magnifies the last bits of a gradient
    (folder / "zero3.json").write_text(json.dumps(zero3))
    return folder


def train(folder: Path, stage: str, kind: str) -> Path:
    """Trains in two processes, or goes on; gives the output folder."""
    output = folder / f"{stage}-{kind}"
    options = {
        "ddp": ["--use_cpu", "true"],
        "fsdp2": ["--use_cpu", "true", "--fsdp", "--fsdp_config", str(EXAMPLES / "fsdp2.json")],
        "zero3": ["--deepspeed", str(folder / "zero3.json")],
    }[kind]
    script = str(Path(__file__).with_name("sharded_processes.py")) if kind == "zero3" else "-m transformers_owl train"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script.split()]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    done = subprocess.run(
        [*command, str(folder / "recipe.yaml"), "--stage", stage, "--output_dir", str(output), *options],
        capture_output=True, text=True, timeout=550, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return output


def logged(output: Path) -> list[dict[str, float]]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [
        {name: entry[name] for name in ("loss", "grad_norm", "learning_rate")} for entry in history if "loss" in entry
    ]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in output.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.fixture(scope="module", params=["instruct-full", "instruct"])
def ddp(request, folder):
    return request.param, train(folder, request.param, "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_weights_train_as_whole_ones(folder, ddp, kind):
    """Losses, norms and rates of every step, and the weights at the end, of a run that was interrupted after half."""
    stage, whole = ddp
    output = train(folder, stage, kind)
    assert len(logged(output)) == STEPS
    if stage == "instruct":
        shutil.rmtree(output / f"checkpoint-{STEPS}")
        for path in output.glob("*.safetensors"):
            path.unlink()
        train(folder, stage, kind)
    for step, expected in zip(logged(output), logged(whole), strict=True):
        assert step == pytest.approx(expected, rel=2e-6)
    found, expected = weights(output), weights(whole)
    assert found.keys() == expected.keys()
    assert max((found[name] - expected[name]).abs().max().item() for name in expected) < 1e-6
    if stage == "instruct-full":
        start = weights(folder / "model")
        moved = [(expected[name] - start[name]).abs().max().item() for name in expected if "vision_model" not in name]
        assert max(moved) > 1e-2
