"""Activation checkpointing changes nothing; a language model in 4 bits is trained through."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import relative_error
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import OwlTrainer, module_table
from transformers_owl.training.arguments import parse_recipe
from transformers_owl.training.throughput import TrainingFlops
from transformers_owl.training.train import load_model, make_mixture, train


ROOT = Path(__file__).parents[2]
QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--eval_strategy", "no", "--peak_tflops", "1"]


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def trained(options: list[str]) -> tuple[OwlTrainer, int]:
    """After two steps of plain SGD, and how often a layer of the language model was computed."""
    owl, args = parse_recipe("configs/tiny-instruct.yaml", [*QUIET, *options])
    torch.manual_seed(0)
    model = load_model(owl, args)
    calls = []
    layer = next(module for name, module in model.named_modules() if name.endswith("language_model.layers.1.mlp"))
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    trainer = OwlTrainer(model, args, make_mixture(owl, args, AutoProcessor.from_pretrained(owl.model)))
    trainer.train()
    return trainer, len(calls)


@pytest.mark.parametrize("stage", ["pretrain", "instruct-lora-only", "instruct-full"])
def test_activation_checkpointing_changes_neither_loss_nor_gradients(stage, tmp_path):
    """
    Bit for bit, dropout included, with the embeddings frozen or not; under SGD the weights after two steps hold the
    gradients. Each layer is computed twice.
    """
    options = ["--stage", stage, "--max_steps", "2", "--save_strategy", "no", "--optim", "sgd", "--learning_rate", "1"]
    runs = [
        trained([*options, "--output_dir", str(tmp_path / value), "--gradient_checkpointing", value])
        for value in ("false", "true")
    ]
    (plain, calls), (checkpointed, more_calls) = runs
    assert (calls, more_calls) == (4, 8)
    logs = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run, _ in runs]
    assert logs[0] == logs[1] and len(logs[0]) == 2
    others = dict(checkpointed.model.named_parameters())
    assert all(torch.equal(parameter, others[name]) for name, parameter in plain.model.named_parameters())


@pytest.fixture(scope="module")
def wider(llama_model, llama_processor, tmp_path_factory):
    """A model with random weights, as wide as bitsandbytes asks for on CPU (multiples of 32)."""
    folder = str(tmp_path_factory.mktemp("wider"))
    config = copy.deepcopy(llama_model.config)
    config.text_config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    config = type(config)(**config.to_dict())
    torch.manual_seed(0)
    MplugOwlForConditionalGeneration(config).save_pretrained(folder)
    llama_processor.save_pretrained(folder)
    return folder


def test_a_language_model_in_4_bits_is_trained_through_and_its_adapter_loads_back(wider, tmp_path):
    options = [*QUIET, "--max_steps", "8", "--logging_steps", "1", "--output_dir", str(tmp_path), "--model", wider]
    trainer = train("configs/tiny-instruct.yaml", [*options, "--quantize", "4bit", "--learning_rate", "5e-2"])
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-2:]) < 0.97 * sum(losses[:2])

    quantization = trainer.model.base_model.model.config.quantization_config
    base = AutoModelForImageTextToText.from_pretrained(wider, quantization_config=quantization)
    reloaded = PeftModel.from_pretrained(base, tmp_path).eval()
    batch = trainer.data_collator([trainer.train_dataset.groups["multimodal"].data[0]])
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
        assert relative_error(reloaded(**batch).logits, expected) < 1e-5
        with reloaded.disable_adapter():
            assert relative_error(reloaded(**batch).logits, expected) > 0.1


def test_packed_weights_count_as_what_they_stand_for(wider, tmp_path):
    """In the table and in MFU: two weights of 4 bits lie in a byte."""
    tables, flops = [], []
    for quantize in ("none", "4bit"):
        options = ["--quantize", quantize, "--model", wider, "--output_dir", str(tmp_path)]
        model = load_model(*parse_recipe("configs/tiny-instruct.yaml", options))
        tables.append({row["part"]: row["parameters"] for row in module_table(model)})
        flops.append(TrainingFlops(model)([100, 50], 1))
    assert tables[0] == tables[1]
    assert flops[0] == flops[1]
