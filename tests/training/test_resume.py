"""A run that was killed at any moment ends with the weights of a run that was not, to the last bit."""

import contextlib
import json
import os
import random
import signal
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import TrainerCallback

from transformers_owl.training.train import train
from transformers_owl.training.trainer import OwlTrainer


STEPS = 8


@pytest.fixture
def recipe(files, llama, tmp_path):
    """Shards, rows and bad rows, in two workers, with crops, dropout, accumulation and a warm-up."""

    def write(stage: str) -> Path:
        files.shard("0.tar", range(9))
        files.shard("1.tar", range(9, 14))
        bad = files.jsonl("captions", [{"file_name": "gone.png", "text": "x"}] * 3, "bad.jsonl")
        content = {
            "model": llama.checkpoint,
            "stage": stage,
            "data": {
                "web": {"weight": 1, "sources": [{"format": "webdataset", "path": str(files.folder / "{0..1}.tar")}]},
                "rows": {"weight": 1, "sources": [files.captions(range(100, 111)), files.text(range(5)), bad]},
            },
            "on_error": "skip",
            "max_skipped": 0.5,
            "max_length": 200,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "dataloader_num_workers": 2,
            "max_steps": STEPS,
            "save_steps": 2,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 3,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "peak_tflops": 1,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def in_a_child(recipe: Path, output: Path, deadly=contextlib.nullcontext) -> int:
    """Trains in a process of its own; gives the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        # The lock of progress bars is shared with the children, and one that is killed within never gives it back.
        tqdm.set_lock(threading.RLock())
        try:
            with deadly():
                train(recipe, ["--output_dir", str(output)])
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


class DieAt(TrainerCallback):
    def __init__(self, step: int, moment: str):
        self.step = step
        setattr(self, f"on_{moment}", lambda args, state, *_, **__: die() if state.global_step == step else None)


@contextlib.contextmanager
def at_step(step: int, moment: str):
    original = OwlTrainer.__init__

    def patched(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(DieAt(step, moment))

    OwlTrainer.__init__ = patched
    yield


@contextlib.contextmanager
def in_a_save(step: int, method: str):
    """Dies within the save of a step, before `method` does its part."""
    original = getattr(OwlTrainer, method)
    setattr(OwlTrainer, method, lambda self, *a: die() if self.state.global_step == step else original(self, *a))
    yield


@contextlib.contextmanager
def after(seconds: float):
    threading.Thread(target=lambda: (time.sleep(seconds), die()), daemon=True).start()
    yield


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = [*folder.glob("model.safetensors"), *folder.glob("adapter_model.safetensors")]
    return load_file(path)


def losses(folder: Path) -> dict[int, float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


DEATHS = {
    "pretrain": [lambda: at_step(1, "step_end"), lambda: at_step(5, "substep_end"), lambda: after(1.2)],
    "instruct": [
        lambda: in_a_save(4, "_save_rng_state"),
        lambda: at_step(5, "pre_optimizer_step"),
        lambda: in_a_save(6, "_place"),
        lambda: at_step(8, "save"),
    ],
}


@pytest.mark.parametrize("stage", DEATHS)
def test_killed_runs_end_with_the_same_weights(recipe, stage, tmp_path):
    path = recipe(stage)
    assert in_a_child(path, tmp_path / "whole") == 0
    for deadly in DEATHS[stage]:
        in_a_child(path, tmp_path / "killed", deadly)
    assert in_a_child(path, tmp_path / "killed") == 0
    for name in (".", "checkpoint-8", "checkpoint-6"):
        expected, actual = weights(tmp_path / "whole" / name), weights(tmp_path / "killed" / name)
        assert expected.keys() == actual.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    listed = [(tmp_path / run / "skipped-0.jsonl").read_text() for run in ("whole", "killed")]
    assert listed[0] == listed[1]
    assert "gone.png" in listed[0]


@pytest.mark.slow
def test_runs_killed_at_random_times_end_with_the_same_weights(recipe, tmp_path):
    path = recipe("pretrain")
    assert in_a_child(path, tmp_path / "whole") == 0
    moments = random.Random(0)
    ends = [in_a_child(path, tmp_path / "killed", lambda: after(moments.uniform(0.2, 2))) for _ in range(12)]
    assert signal.SIGKILL in ends
    assert in_a_child(path, tmp_path / "killed") == 0
    expected, actual = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_what_a_killed_save_leaves_is_no_checkpoint(recipe, tmp_path):
    """It lies aside, and the next run removes it."""
    path = recipe("instruct")
    assert in_a_child(path, tmp_path / "out", lambda: in_a_save(2, "_save_rng_state")) == signal.SIGKILL
    assert (tmp_path / "out" / "unfinished" / "checkpoint-2" / "adapter_model.safetensors").exists()
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert in_a_child(path, tmp_path / "out", lambda: at_step(2, "save")) == signal.SIGKILL
    assert not (tmp_path / "out" / "unfinished").exists()


def test_other_workers_cannot_go_on(recipe, tmp_path):
    path = recipe("instruct")
    assert in_a_child(path, tmp_path / "out", lambda: at_step(2, "save")) == signal.SIGKILL
    with pytest.raises(ValueError, match=r"written by a run with .*'workers': 2.*, but this one has .*'workers': 1"):
        train(path, ["--output_dir", str(tmp_path / "out"), "--dataloader_num_workers", "0"])


def test_a_run_killed_after_its_last_checkpoint_still_saves_its_model(recipe, tmp_path):
    path = recipe("instruct")
    options = ["--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--save_total_limit", "1"]
    train(path, options)
    expected = weights(tmp_path / "out")
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    assert train(path, options).state.global_step == 2
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "out").items())
    answers = tmp_path / "out" / "answers.jsonl"
    answers.write_text('{"step": 2}\n{"step": 3}\n')  # the second is of a step that comes once more
    assert train(path, [*options, "--max_steps", "4"]).state.global_step == 4
    assert answers.read_text() == '{"step": 2}\n'
    assert [folder.name for folder in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_run_killed_after_its_last_checkpoint_saves_its_best_model(recipe, files, tmp_path):
    path = recipe("instruct")
    content = yaml.safe_load(path.read_text())
    content["eval_data"] = {"rows": {"sources": [files.text(range(5))]}}
    content |= {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "max_steps": 4}
    # The largest loss counts as the best: that of the first checkpoint.
    content |= {"metric_for_best_model": "loss", "greater_is_better": True, "report_to": "none"}
    path.write_text(yaml.safe_dump(content))
    options = ["--output_dir", str(tmp_path / "out")]
    expected = [weights(Path(train(path, options).state.best_model_checkpoint)), weights(tmp_path / "out")]
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    assert Path(train(path, options).state.best_model_checkpoint) == tmp_path / "out" / "checkpoint-2"
    found, last = weights(tmp_path / "out"), weights(tmp_path / "out" / "checkpoint-4")
    for best in expected:
        assert all(torch.equal(found[name], best[name]) for name in found)
    assert any(not torch.equal(found[name], last[name]) for name in found)
