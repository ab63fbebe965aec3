"""Two processes train as one does; batches are split once; a killed group goes on; FSDP2 shards what it should."""

import copy
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scored import SIZES, scored

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import ConversationCollator, Mixture, prepare_stage
from transformers_owl.training.mixture import Group
from transformers_owl.training.train import train


STEPS = 6
SCRIPT = Path(__file__).parent / "two_processes.py"


def colour(number: int) -> tuple[int, int, int]:
    return (5 * number + 3, 250 - 7 * number, 11 * number % 256)


def caption(*numbers: int) -> str:
    return ", ".join(" ".join(map(str, colour(number))) for number in numbers)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (9, 7), colour(number)).save(buffer, "png")
    return buffer.getvalue()


def write_rows(folder: Path) -> dict:
    """24 rows with one image or two, numbers of the images running on."""
    lines = []
    for row in range(24):
        numbers = [row] if row % 3 else [row, 24]
        for number in numbers:
            (folder / f"{number}.png").write_bytes(png(number))
        content = [{"type": "image", "path": f"{number}.png"} for number in numbers]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": caption(*numbers)}]
        lines.append(json.dumps({"messages": messages}))
    (folder / "images.jsonl").write_text("\n".join(lines))
    return {"format": "messages", "path": str(folder / "images.jsonl")}


def write_shards(folder: Path, shards: int, samples: int) -> dict:
    folder.mkdir()
    for number in range(shards * samples):
        with tarfile.open(folder / f"{number % shards}.tar", "a") as tar:
            for suffix, data in (("png", png(number)), ("txt", caption(number).encode())):
                entry = tarfile.TarInfo(f"{number:04}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return {"format": "webdataset", "path": f"{folder}/{{0..{shards - 1}}}.tar"}


def conversation(number: int) -> dict:
    """Every third has an image."""
    content = [{"type": "text", "text": f"Which number{'s' * number}?"}]
    if number % 3 == 0:
        content.insert(0, {"type": "image", "path": f"{number}.png"})
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": f"It is {number}."}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, llama_model, llama_processor):
    """What the processes need, and after `launched` what they made."""
    folder = tmp_path_factory.mktemp("two")
    model = MplugOwlForConditionalGeneration(llama_model.config)
    model.load_state_dict(llama_model.state_dict())
    model.config.visual_abstractor_config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(folder / "model")
    llama_processor.save_pretrained(folder / "model")
    sources = {
        "rows": {"source": write_rows(folder), "steps": 4},
        "shards-divisible": {"source": write_shards(folder / "divisible", 4, 6), "steps": 4},
        "shards-shared": {"source": write_shards(folder / "shared", 3, 8), "steps": 4},
    }
    (folder / "mixed.jsonl").write_text("\n".join(json.dumps(conversation(number)) for number in range(18)))
    rows = [conversation(0), conversation(1)]
    rows[0]["messages"][0]["content"][0]["path"] = str(folder / "0.png")
    (folder / "rows.json").write_text(json.dumps(rows))
    asked = [conversation(number) for number in range(5)]
    for number, row in enumerate(asked):
        row["messages"][1]["content"] += " And more." * number
        for part in row["messages"][0]["content"]:
            if part["type"] == "image":
                part["path"] = str(folder / part["path"])
    (folder / "asked.json").write_text(json.dumps(asked))
    recipe = {
        "model": str(folder / "model"), "stage": "pretrain", "max_steps": STEPS, "save_steps": 2, "logging_steps": 1,
        "data": {"mixed": {"sources": [{"format": "messages", "path": str(folder / "mixed.jsonl")}]}},
        "optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 3, "peak_tflops": 1.0,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # Every process has to pass every trained parameter in every step: unused ones are not looked for.
    options = ["--per_device_train_batch_size", "2", "--ddp_find_unused_parameters", "false"]
    settings = {"model": str(folder / "model"), "sources": sources, "options": options}
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


def launch(folder: Path, what: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [*command, "--monitor-interval", "0.1", str(SCRIPT), str(folder), what],
        capture_output=True, text=True, timeout=240, env=environment,
    )  # fmt: skip


def complaint(process: subprocess.CompletedProcess) -> str:
    """What the processes said last, without the launcher's summary."""
    return "\n".join(line for line in process.stderr.splitlines() if line.startswith("[rank"))[-3000:]


@pytest.fixture(scope="module")
def launched(folder):
    done = launch(folder, "whole")
    assert done.returncode == 0, complaint(done)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """One process with the same rows in every step."""
    options = ["--output_dir", str(folder / "alone"), "--per_device_train_batch_size", "4"]
    train(folder / "recipe.yaml", options)
    return folder / "alone"


def losses(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [float(entry["loss"]) for entry in history if "loss" in entry]


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max((first[name] - second[name]).abs().max().item() for name in first)


def test_the_blank_image_is_what_gives_every_process_its_gradients(folder, llama_model, llama_processor):
    """
    In some step one process has images and the other has none; there nothing would train, and a collective operation
    would wait for gradients. The blank image's are zero.
    """
    group = Group.from_dict(yaml.safe_load((folder / "recipe.yaml").read_text())["data"]["mixed"])
    streams = [
        Mixture({"mixed": group}, ConversationCollator(llama_processor), batch_size=2, seed=3, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    steps = [batches for batches, _ in zip(zip(*streams, strict=True), range(STEPS), strict=False)]
    images = [["pixel_levels" in batch for batch in step] for step in steps]
    assert [True, False] in images or [False, True] in images

    model = prepare_stage(copy.deepcopy(llama_model), "pretrain")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    samples = [conversation(1), conversation(2)]
    assert not model(**ConversationCollator(llama_processor)(samples)).loss.requires_grad
    model(**ConversationCollator(llama_processor, always="image")(samples)).loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)


@pytest.mark.slow
def test_two_processes_train_as_one(launched, alone):
    """
    Float32 sums in another order differ by some units of 2 ** -24. Under plain SGD nothing amplifies that, so losses
    agree within 1e-6 of their value and weights within 1e-4 of how far they moved.
    """
    assert losses(alone) == pytest.approx(losses(launched / "whole"), rel=1e-6)
    assert len(losses(alone)) == STEPS
    start, one, two = (
        load_file(folder / "model.safetensors") for folder in (launched / "model", alone, launched / "whole")
    )
    moved = largest_difference(start, one)
    assert moved > 0.01
    assert largest_difference(one, two) < 1e-4 * moved


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "shards-divisible", "shards-shared"])
def test_every_sample_comes_once_with_its_own_images(launched, name):
    """In one epoch, over two processes with two workers each; a caption says the colours of its images."""
    received = [json.loads((launched / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(records) for records in received] == [12, 12]
    captions = [written for records in received for written, _ in records]
    assert captions == [seen for records in received for _, seen in records]
    pairs = [(row,) if row % 3 or name != "rows" else (row, 24) for row in range(24)]
    assert sorted(captions) == sorted(caption(*numbers) for numbers in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_ends_with_the_best_checkpoint(launched, rank):
    found = json.loads((launched / f"best-{rank}.json").read_text())
    assert found == {"named": "best/checkpoint-2", "has": [2]}
    state = json.loads((launched / "best/checkpoint-3/trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(launched / "best/checkpoint-2")


@pytest.fixture(scope="module")
def scored_alone(folder):
    return scored(folder)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_score_the_answers_that_one_would_write(launched, scored_alone, rank):
    """
    Each row once and in its order, also where their number is no multiple of the processes or of their batches, and
    where it is smaller: in the metrics of recipes, and in what `compute_metrics` gets of OwlSeq2SeqTrainer.
    """
    found = json.loads((launched / f"scored-{rank}.json").read_text())
    for (count, _), one, two in zip(SIZES, scored_alone, found, strict=True):
        assert one == two
        assert one["scored"] == len(one["recipe"]) == len(one["predictions"]) == count
        assert [reference for _, reference in one["recipe"]] == [f"It is {n}.{' And more.' * n}" for n in range(count)]
        assert all(answer for answer, _ in one["recipe"])


@pytest.mark.slow
@pytest.mark.parametrize("stage, gradients", [("everything", 108), ("pretrain", 87), ("instruct", 56)])
def test_fsdp2_shards_every_parameter_and_changes_nothing(launched, stage, gradients):
    """
    Each process checks that parameters and gradients are DTensors in two halves; loss and gradients are those of the
    whole model on the whole batch, with frozen parts and with LoRA.
    """
    result = json.loads((launched / "shards.json").read_text())[stage]
    assert result["loss"][0] == pytest.approx(result["loss"][1], rel=1e-6)
    assert result["error"] < 1e-5
    assert result["gradients"] == gradients


def test_every_rule_of_the_fsdp_plan_names_modules(llama_model):
    names = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in llama_model.named_modules()}
    assert set(llama_model.fsdp_plan) <= names
    assert "lm_head" in llama_model.fsdp_plan


@pytest.mark.slow
def test_a_killed_group_goes_on_as_if_nothing_had_happened(launched):
    """Bit for bit: a sum of two processes has one order."""
    killed = launch(launched, "killed")
    assert killed.returncode != 0 and "exitcode  : -9" in killed.stderr, complaint(killed)
    assert {path.name for path in (launched / "killed").glob("checkpoint-*")} == {"checkpoint-2"}
    resumed = launch(launched, "resumed")
    assert resumed.returncode == 0 and "Resuming from" in resumed.stderr, complaint(resumed)
    assert losses(launched / "killed") == losses(launched / "whole")
    weights = (load_file(launched / name / "model.safetensors") for name in ("killed", "whole"))
    assert largest_difference(*weights) == 0
