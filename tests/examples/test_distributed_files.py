"""The files for clusters parse, and the libraries accept them; nothing here is trained on a GPU."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from conftest import tiny_config
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training.arguments import parse_recipe


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/distributed"
CPU = ["--use_cpu", "true", "--bf16", "false"]


class WithoutThePackage(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """The Trainer's reading of a configuration, but for its look for the package, which is not installed."""

    def __init__(self, path: str):
        HfDeepSpeedConfig.__init__(self, path)
        self.mismatches: list[str] = []


def commands() -> list[list[str]]:
    """Lines of the README that start a training, as recipe and options."""
    lines = [
        line for line in (FOLDER / "README.md").read_text().splitlines() if "configs/" in line and " train " in line
    ]
    return [shlex.split(line.split(" train ")[1]) for line in lines]


def test_the_commands_of_the_readme_are_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = commands()
    assert [options[0] for options in found] == ["configs/instruct.yaml", *["configs/instruct-full.yaml"] * 2]
    for recipe, *options in found:
        if "--deepspeed" in options:  # not installed: the file's own test is below
            assert json.loads(Path(options.pop()).read_text())["zero_optimization"]["stage"] == 3
            options.pop()
        owl, _ = parse_recipe(recipe, [*options, *CPU])
        assert owl.global_batch_size == 256
    _, sharded = parse_recipe(found[1][0], [*found[1][1:], *CPU])
    assert sharded.fsdp
    assert sharded.fsdp_plugin_args["fsdp_version"] == 2


def test_fsdp2_wraps_the_layers_of_every_part(tmp_path):
    arguments = TrainingArguments(str(tmp_path), fsdp=True, fsdp_config=str(FOLDER / "fsdp2.json"), use_cpu=True)
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    model = MplugOwlForConditionalGeneration(tiny_config())
    plugin.set_auto_wrap_policy(model)
    wrapped = {
        type(module).__name__
        for module in model.modules()
        if plugin.auto_wrap_policy(module=module, recurse=False, nonwrapped_numel=0)
    }
    assert wrapped == {
        "LlamaDecoderLayer",
        "MplugOwlVisionEmbeddings",
        "MplugOwlVisionLayer",
        "MplugOwlVisualAbstractorModel",
    }


def test_deepspeed_takes_its_values_from_the_recipe():
    owl, args = parse_recipe(ROOT / "configs/instruct-full.yaml", CPU)
    config = WithoutThePackage(str(FOLDER / "zero3.json"))
    config.trainer_config_process(args)
    config.trainer_config_finalize(args, MplugOwlForConditionalGeneration(tiny_config()), args.max_steps)
    assert config.is_zero3()
    assert "auto" not in json.dumps(config.config)
    assert config.config["train_batch_size"] == owl.global_batch_size
    assert config.config["optimizer"]["params"]["lr"] == args.learning_rate


def test_the_script_asks_for_what_it_needs():
    done = subprocess.run(
        ["bash", FOLDER / "launch.sh"], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    assert done.returncode != 0
    assert "HEAD: is the address of the first machine" in done.stderr


@pytest.mark.slow
def test_the_script_starts_processes_that_train_together(tmp_path):
    options = ["configs/tiny-instruct.yaml", "--use_cpu", "true", "--max_steps", "2", "--output_dir", str(tmp_path)]
    options += ["--eval_steps", "1"]
    environment = {
        **os.environ, "HEAD": "localhost", "NODES": "1", "GPUS": "2", "PORT": "0", "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }  # fmt: skip
    command = ["bash", str(FOLDER / "launch.sh"), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "adapter_model.safetensors").exists()
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["step"] for answer in answers] == [1, 2]
    assert {path.name for path in (tmp_path / "checkpoint-2").glob("data-*.json")} == {"data-0.json", "data-1.json"}
