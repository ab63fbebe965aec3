"""A run that was killed at any moment ends with the weights of a run that was not, to the last bit."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import TrainerCallback

from transformers_owl.training.output_folder import shorten
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
        return files.recipe(content)

    return write


def in_a_child(recipe: Path, output: Path, deadly=contextlib.nullcontext) -> int:
    """
    Trains in a process of its own; gives the signal that ended it, or 0. A data worker whose parent is killed before it
    has noted the parent's id would wait for ever, and with it all who read what this process prints.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
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
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
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

    def deadly(self, *args, **kwargs):
        return die() if self.state.global_step == step else original(self, *args, **kwargs)

    setattr(OwlTrainer, method, deadly)
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


@pytest.mark.parametrize("stage", ["instruct", pytest.param("pretrain", marks=pytest.mark.slow)])
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


STRATEGIES = {
    "epoch": {"save_strategy": "epoch", "eval_strategy": "epoch", "logging_strategy": "epoch"},
    "steps": {"save_steps": 4, "eval_strategy": "steps", "eval_steps": 4},
}
SAVES = {"epoch": (3, 5, 8), "steps": (4, 8)}  # two and a half steps are an epoch
# What a run with a best model may die of at a save, each a little later than the one before.
DEATHS_OF_A_SAVE = [
    lambda step: at_step(step, "step_end"),
    lambda step: at_step(step, "evaluate"),
    lambda step: in_a_save(step, "_save_rng_state"),
    lambda step: in_a_save(step, "_place"),
]


@pytest.mark.slow
@pytest.mark.parametrize("is_greater", [True, False], ids=["first is best", "last is best"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_runs_end_with_the_same_best_model(recipe, files, tmp_path, strategy, is_greater):
    """Killed before, in and after their saves, and while they put the best weights into their folder."""
    path = recipe("instruct")
    content = yaml.safe_load(path.read_text())
    content["data"] = {"rows": {"sources": [files.captions(range(100, 106)), files.text(range(4))]}}
    content["eval_data"] = {"rows": {"sources": [files.text(range(4))]}}
    content |= {**STRATEGIES[strategy], "load_best_model_at_end": True, "save_total_limit": 2}
    content |= {"metric_for_best_model": "loss", "greater_is_better": is_greater}
    path.write_text(yaml.safe_dump(content))
    assert in_a_child(path, tmp_path / "whole") == 0
    turns = itertools.cycle((DEATHS_OF_A_SAVE[:2], DEATHS_OF_A_SAVE[2:]))
    deaths = [death(step) for step, turn in zip(SAVES[strategy], turns, strict=False) for death in turn]
    deaths += [in_a_save(STEPS, name) for name in ("_load_best_model", "_load_best_model", "save_model")]
    for deadly in deaths:
        assert in_a_child(path, tmp_path / "killed", lambda deadly=deadly: deadly) == signal.SIGKILL
    assert in_a_child(path, tmp_path / "killed") == 0
    folders = [sorted(folder.name for folder in (tmp_path / run).glob("checkpoint-*")) for run in ("whole", "killed")]
    assert folders[0] == folders[1]
    for name in (".", *folders[0]):
        expected, actual = weights(tmp_path / "whole" / name), weights(tmp_path / "killed" / name)
        assert expected.keys() == actual.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
    states = [json.loads((tmp_path / run / "trainer_state.json").read_text()) for run in ("whole", "killed")]
    best = [(state["best_metric"], Path(state["best_model_checkpoint"]).name) for state in states]
    assert best[0] == best[1] == (best[0][0], f"checkpoint-{SAVES[strategy][0 if is_greater else -1]}")
    logged = [
        [(entry["step"], entry["epoch"], entry["eval_loss"]) for entry in state["log_history"] if "eval_loss" in entry]
        for state in states
    ]
    assert logged[0] == logged[1] and len(logged[0]) == len(SAVES[strategy])
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_constant_schedule_can_be_made_longer(recipe, tmp_path):
    path = recipe("instruct")
    options = ["--output_dir", str(tmp_path / "out"), "--lr_scheduler_type", "constant", "--save_total_limit", "1"]
    train(path, [*options, "--max_steps", "2"])
    answers = tmp_path / "out" / "answers.jsonl"
    answers.write_text('{"step": 2}\n{"step": 3}\n')  # the second is of a step that comes once more
    assert train(path, [*options, "--max_steps", "4"]).state.global_step == 4
    assert answers.read_text() == '{"step": 2}\n'
    assert [folder.name for folder in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]


@pytest.mark.slow
@pytest.mark.parametrize("is_moved", [False, True])
def test_a_run_killed_after_its_last_checkpoint_saves_its_best_model(recipe, files, tmp_path, is_moved):
    """Also when a finished run is started once more, and when its folder was moved in between."""
    path = recipe("instruct")
    content = yaml.safe_load(path.read_text())
    content["eval_data"] = {"rows": {"sources": [files.text(range(5))]}}
    content |= {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "max_steps": 4}
    # The largest loss counts as the best: that of the first checkpoint.
    content |= {"metric_for_best_model": "loss", "greater_is_better": True, "report_to": "none"}
    path.write_text(yaml.safe_dump(content))
    output = tmp_path / "out"
    assert in_a_child(path, output, lambda: at_step(4, "save")) == signal.SIGKILL
    if is_moved:
        output = output.rename(tmp_path / "moved")
    for _ in range(2):
        assert Path(train(path, ["--output_dir", str(output)]).state.best_model_checkpoint) == output / "checkpoint-2"
        found, best, last = (weights(output / name) for name in (".", "checkpoint-2", "checkpoint-4"))
        assert all(torch.equal(found[name], best[name]) for name in found)
        assert any(not torch.equal(found[name], last[name]) for name in found)
        (output / "adapter_model.safetensors").unlink()
    (output / "checkpoint-2").rename(output / "gone")
    with pytest.raises(ValueError, match=r"names .*checkpoint-2 as the best checkpoint, but it does not exist"):
        train(path, ["--output_dir", str(output)])


CHANGES = {
    "learning_rate": ("2e-3", r"learning_rate: 0\.001, now 0\.002"),
    "max_steps": ("6", r"max_steps: 4, now 6"),
    "seed": ("7", r"seed: 42, now 7"),
    "lora_r": ("4", r"lora_r: 8, now 4"),
    "per_device_train_batch_size": ("4", r"per_device_train_batch_size: 2, now 4"),
    "gradient_accumulation_steps": ("1", r"gradient_accumulation_steps: 2, now 1"),
    "global_batch_size": ("2", r"gradient_accumulation_steps: 2, now 1"),
    "max_length": ("100", r"max_length: 200, now 100"),
    "crop": (["0.9", "1"], r"crop: \[0\.5, 1\.0\], now \[0\.9, 1\.0\]"),
    "stage": ("instruct-lora-only", r"stage: 'instruct', now 'instruct-lora-only'"),
    "adam_beta2": ("0.5", r"adam_beta2: 0\.999, now 0\.5"),
    "warmup_steps": ("1", r"warmup_steps: 3, now 1"),
    "data": ("", r"groups: \[\['rows', 1\], \['web', 1\]\], now \[\['rows', 2\], \['web', 1\]\]"),
    "model": ("", r"model: .*, now "),
}


def test_a_run_goes_on_as_what_it_was_or_not_at_all(recipe, files, llama, tmp_path, caplog):
    """A change that other weights would come of is refused with both values; what may change is applied, and said."""
    path, output = recipe("instruct"), tmp_path / "out"
    options = ["--output_dir", str(output), "--max_steps", "4"]
    assert in_a_child(path, output, lambda: at_step(2, "save")) == signal.SIGKILL
    # The child had 8 steps: its record is made one of 4.
    for folder in (output, output / "checkpoint-2"):
        record = json.loads((folder / "run.json").read_text())
        record["settings"]["max_steps"] = 4
        (folder / "run.json").write_text(json.dumps(record, indent=1))
    data = yaml.safe_load(path.read_text())["data"]
    data["rows"]["weight"] = 2
    copied = tmp_path / "copied"
    shutil.copytree(llama.checkpoint, copied)
    values = {"data": yaml.safe_dump(data), "model": str(copied)}
    for name, (value, message) in CHANGES.items():
        value = values.get(name, value)
        with pytest.raises(ValueError, match=message):
            train(path, [*options, f"--{name}", *(value if isinstance(value, list) else [value])])
    rows = files.folder / "text.jsonl"
    whole = rows.read_bytes()
    rows.write_bytes(whole.replace(b"grey 3", b"grey 4"))
    with pytest.raises(ValueError, match=rf"{rows}: {len(whole)} bytes of \d+ s, now {len(whole)} bytes"):
        train(path, options)
    rows.write_bytes(whole)
    os.utime(rows, ns=(0, record["files"][str(rows)][1]))
    assert train(path, [*options, "--save_steps", "1", "--max_skipped", "0.6"]).state.global_step == 4
    assert "checkpoint-2: max_skipped: 0.5, now 0.6; output_dir" not in caplog.text
    assert "checkpoint-2: max_skipped: 0.5, now 0.6; save_steps: 2, now 1" in caplog.text


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(recipe, tmp_path):
    path, output = recipe("instruct"), tmp_path / "out"
    options = ["--output_dir", str(output)]
    assert in_a_child(path, output, lambda: at_step(4, "save")) == signal.SIGKILL
    checkpoint = output / "checkpoint-4"
    names = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "data-0.json", "run.json", "trainer_state.json"}
    assert names | {"adapter_model.safetensors"} <= {file.name for file in checkpoint.iterdir()}
    for name in sorted(names | {"adapter_model.safetensors"}):
        file = checkpoint / name
        whole = file.read_bytes()
        damages = [None, whole[: len(whole) // 2], bytes(len(whole))]
        for damaged in damages if name in ("optimizer.pt", "run.json") else damages[:1]:
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"checkpoint-4 is incomplete.*Remove it to resume from checkpoint-2"):
                train(path, options)
        file.write_bytes(whole)
    assert train(path, options).state.global_step == STEPS


@pytest.mark.slow
def test_resuming_means_what_is_said(recipe, tmp_path):
    path, output = recipe("instruct"), tmp_path / "out"
    options = ["--output_dir", str(output), "--max_steps", "4", "--resume_from_checkpoint"]
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint` is true, but .* has no checkpoint"):
        train(path, [*options, "true"])
    with pytest.raises(ValueError, match=r"The checkpoint .*checkpoint-2 does not exist"):
        train(path, [*options, str(output / "checkpoint-2")])
    first = train(path, options[:-1])
    for wish, begun in (("true", 4), (str(output / "checkpoint-2"), 2), ("false", 0)):
        trainer = train(path, [*options, wish])
        assert (trainer.train_dataset.first, trainer.state.global_step) == (2 * begun, 4)
        assert losses(output) == {entry["step"]: entry["loss"] for entry in first.state.log_history if "loss" in entry}
    assert (output / "_earlier-1" / "checkpoint-4").is_dir()
    assert sorted(folder.name for folder in output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.text(max_size=9)), max_size=9), st.integers(0, 9), st.binary(max_size=9)
)
def test_logs_are_shortened_line_by_line(tmp_path_factory, rows, step, torn):
    """Whatever a line holds, the line breaks of Unicode too, and whatever a full disk left of the last one."""
    path = tmp_path_factory.mktemp("log") / "skipped-0.jsonl"
    lines = [json.dumps({"step": number, "error": text}, ensure_ascii=False) + "\n" for number, text in rows]
    path.write_bytes("".join(lines).encode() + torn)
    shorten(path, step)
    kept = [line for line, (number, _) in zip(lines, rows, strict=True) if number <= step]
    assert path.read_bytes() == "".join(kept).encode()
