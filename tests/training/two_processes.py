"""
What `test_distributed.py` starts by torchrun, with gloo on CPU. `whole`: training by the command's own function,
batches counted, weights sharded by FSDP2. `killed`, `resumed`: one process is killed in training; it goes on.
"""

import json
import os
import re
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from scored import scored
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoProcessor, TrainerCallback, TrainingArguments
from transformers.trainer import DEFAULT_CALLBACKS

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import ConversationCollator, Mixture, OwlTrainer, prepare_stage
from transformers_owl.training.mixture import Group
from transformers_owl.training.train import train


RANK = int(os.environ["RANK"])


class Killed(TrainerCallback):
    """The second process dies after its third step, when a checkpoint of the second one is there."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Recorder(OwlTrainer):
    """Keeps the captions and the mean colours of the images that arrive, as strings."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.records: list[tuple[str, str]] = []

    def training_step(self, model, inputs, num_items_in_batch=None):
        processor = self.processing_class
        colours = inputs["pixel_levels"].float().mean((2, 3)).round().int().tolist()
        images = iter(" ".join(map(str, colour)) for colour in colours)
        for ids, labels in zip(inputs["input_ids"], inputs["labels"], strict=True):
            count = int((ids == processor.image_token_id).sum()) // (processor.num_query_tokens + 1)
            seen = ", ".join(next(images) for _ in range(count))
            self.records.append((processor.tokenizer.decode(labels[labels != -100], skip_special_tokens=True), seen))
        return super().training_step(model, inputs, num_items_in_batch)


def count_samples(folder: Path, model: str, sources: dict[str, dict]) -> None:
    """Trains for one epoch of each kind of data, two workers a process, and writes what came."""
    processor = AutoProcessor.from_pretrained(model)
    for name, setting in sources.items():
        arguments = TrainingArguments(
            str(folder / name), max_steps=setting["steps"], per_device_train_batch_size=3, dataloader_num_workers=2,
            remove_unused_columns=False, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        mixture = Mixture(
            {"data": Group.from_dict({"sources": [setting["source"]]})}, ConversationCollator(processor), batch_size=3,
            rank=RANK, world_size=2,
        )  # fmt: skip
        owl = prepare_stage(MplugOwlForConditionalGeneration.from_pretrained(model), "projection")
        trainer = Recorder(owl, arguments, mixture, processing_class=processor, data_collator=mixture.collator)
        trainer.train()
        (folder / f"{name}-{RANK}.json").write_text(json.dumps(trainer.records))


class Judged(OwlTrainer):
    """Its second step is the best."""

    def evaluate(self, *args, **kwargs):
        return {"eval_loss": abs(self.state.global_step - 2)}


def keep_the_best(folder: Path, model: str, rows: dict) -> None:
    """Trains for three steps; writes which checkpoint each process takes for the best, and whose weights it has."""
    arguments = TrainingArguments(
        str(folder / "best"), max_steps=3, per_device_train_batch_size=2, remove_unused_columns=False, report_to=[],
        eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True, disable_tqdm=True, use_cpu=True,
        optim="sgd", learning_rate=0.05,
    )  # fmt: skip
    processor = AutoProcessor.from_pretrained(model)
    mixture = Mixture(
        {"data": Group.from_dict({"sources": [rows]})}, ConversationCollator(processor), 2, rank=RANK, world_size=2
    )
    owl = prepare_stage(MplugOwlForConditionalGeneration.from_pretrained(model), "projection")
    trainer = Judged(owl, arguments, mixture, eval_dataset=[{}], data_collator=mixture.collator)
    trainer.train()
    saved = {step: load_file(folder / f"best/checkpoint-{step}/model.safetensors") for step in (1, 2, 3)}
    weight = "model.abstractor.visual_fc.weight"
    has = [step for step, weights in saved.items() if torch.equal(weights[weight], owl.get_parameter(weight))]
    found = {"named": Path(trainer.state.best_model_checkpoint).relative_to(folder).as_posix(), "has": has}
    (folder / f"best-{RANK}.json").write_text(json.dumps(found))


def shard(model: nn.Module) -> None:
    """By FSDP2, module for module: after the model's plan, or with LoRA the modules that are never split."""
    if isinstance(model, MplugOwlForConditionalGeneration):
        rules = {name: re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in model.named_modules()}
        modules = [model.get_submodule(name) for name, rule in rules.items() if rule in model.fsdp_plan]
    else:
        names = model.base_model.model._no_split_modules
        modules = [module for module in model.modules() if type(module).__name__ in names]
    for module in modules:
        fully_shard(module)
    fully_shard(model)


def check_shards(folder: Path, path: str) -> None:
    """
    A batch of two rows whole, and one row a process with sharded weights: the same loss and gradients. The second row
    has no image; frozen weights are bfloat16, trained ones float32.
    """
    processor = AutoProcessor.from_pretrained(path)
    collator = ConversationCollator(processor, always="image")
    samples = json.loads((folder / "rows.json").read_text())
    whole, part = collator(samples), collator(samples[RANK : RANK + 1])
    tokens = (whole["labels"] != -100).sum()
    results = {}
    for stage in ("everything", "pretrain", "instruct"):
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            model = MplugOwlForConditionalGeneration.from_pretrained(path, dtype=torch.bfloat16)
            model = model if stage == "everything" else prepare_stage(model, stage, lora_dropout=0.0)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # zeros would hide the gradients of the other matrix
                    nn.init.normal_(parameter, std=0.1)
            models.append(model.train())
        reference, sharded = models
        shard(sharded)
        loss = reference(**whole).loss
        loss.backward()
        mine = sharded(**part, num_items_in_batch=tokens).loss * 2
        mine.backward()
        torch.distributed.all_reduce(mine := mine.detach(), torch.distributed.ReduceOp.AVG)
        results[stage] = {"loss": [loss.item(), mine.item()], **compare(reference, sharded)}
    if RANK == 0:
        (folder / "shards.json").write_text(json.dumps(results))


def compare(reference: nn.Module, sharded: nn.Module) -> dict:
    """Checks how parameters and gradients are kept; gives the largest relative difference of a gradient."""
    expected = dict(reference.named_parameters())
    largest, gradients = 0.0, 0
    for name, parameter in sharded.named_parameters():
        assert isinstance(parameter, DTensor) and parameter.placements == (Shard(0),), name
        assert parameter.to_local().shape[0] == len(expected[name].chunk(2)[0]) * (len(expected[name]) > RANK), name
        assert (parameter.grad is None) == (expected[name].grad is None), name
        if parameter.grad is not None:
            assert isinstance(parameter.grad, DTensor) and parameter.grad.placements == (Shard(0),), name
            found, wanted = parameter.grad.full_tensor(), expected[name].grad
            scale = max(wanted.abs().max().item(), 1e-6)
            largest, gradients = max(largest, (found - wanted).abs().max().item() / scale), gradients + 1
    return {"error": largest, "gradients": gradients}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, what = Path(sys.argv[1]), sys.argv[2]
    settings = json.loads((folder / "settings.json").read_text())
    if what == "killed":
        DEFAULT_CALLBACKS.append(Killed)
    output = folder / ("whole" if what == "whole" else "killed")
    train(folder / "recipe.yaml", [*settings["options"], "--output_dir", str(output)])
    if what == "whole":
        count_samples(folder, settings["model"], settings["sources"])
        keep_the_best(folder, settings["model"], settings["sources"]["rows"]["source"])
        check_shards(folder, settings["model"])
        (folder / f"scored-{RANK}.json").write_text(json.dumps(scored(folder, RANK, 2)))
    torch.distributed.destroy_process_group()
