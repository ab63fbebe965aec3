"""Parts chosen one by one: what trains in full, in some layers, by LoRA, and at which learning rate."""

import io
import itertools

import pytest
import torch
from conftest import tiny_config
from peft import PeftModel
from rich.console import Console
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import OwlTrainer, module_table, prepare_stage
from transformers_owl.training.arguments import parse_recipe
from transformers_owl.training.preview import preview
from transformers_owl.training.stages import choose_stage, rated_part
from transformers_owl.training.train import load_model, train


QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--peak_tflops", "1", "--use_cpu", "true"]
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
TOWERS = ("own", "siglip_vision_model", "dinov2")
# What trains, and where LoRA goes.
CHOICES = {
    "layers of each part": (["vision.layers.1-2", "abstractor.layers.0", "language_model.layers.1"], []),
    "layers and LoRA on the language model": (["abstractor", "vision.layers.2"], ["language_model"]),
    "LoRA on both": (["abstractor"], ["language_model", "vision"]),
    "LoRA on the vision model alone": ([], ["vision"]),
    "the last layer of the abstractor": (["projection"], ["language_model"]),
    "vision and LoRA": (["vision"], ["language_model"]),
    "layers of the language model beside LoRA": (["language_model.layers.0"], ["vision"]),
}


def build(tower: str) -> MplugOwlForConditionalGeneration:
    torch.manual_seed(0)
    config = tiny_config(vision_config=SIZES)
    if tower != "own":
        config = type(config)(**{**config.to_dict(), "vision_config": CONFIG_MAPPING[tower](**SIZES)})
    return MplugOwlForConditionalGeneration(config)


def batch(model) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (2, 14), generator=generator)
    ids[:, 3:8] = model.config.image_token_id
    pixels = torch.randn(2, 3, 28, 28, generator=generator)
    return {"input_ids": ids, "labels": ids.clone(), "pixel_values": pixels}


def effective(model) -> dict[str, torch.Tensor]:
    """The weights that the model computes with, under the names of a model without LoRA."""
    merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
    return {name: parameter.detach().clone() for name, parameter in merged.named_parameters()}


def should_move(name: str, trains: list[str], lora_on: list[str]) -> bool:
    """Told by the words of a name alone: numbers of layers, and what queries and values are called."""
    part = rated_part(name)
    numbers = {word for word in name.split(".") if word.isdecimal()}
    is_asked = name.endswith(("q_proj.weight", "v_proj.weight", "query.weight", "value.weight"))
    is_last = any(word in name for word in ("visual_fc", "vit_eos"))
    for each in trains:
        first, _, layers = each.partition(".layers.")
        start, _, end = layers.partition("-")
        if each == part or (each == "projection" and is_last):
            return True
        if layers and first == part and numbers & {str(n) for n in range(int(start), int(end or start) + 1)}:
            return True
    return part in lora_on and is_asked and bool(numbers)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("choice", CHOICES)
def test_the_parts_that_are_named_move_and_no_others(tower, choice, tmp_path):
    """In every vision model, and as read back from what was saved."""
    trains, lora_on = CHOICES[choice]
    before = effective(build(tower))
    build(tower).save_pretrained(tmp_path / "base")
    model = prepare_stage(build(tower), choose_stage("instruct", trains, lora_on), lora_dropout=0.0).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch(model)).loss.backward()
        lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert lacking == []
        optimizer.step()
    model.eval()
    with torch.no_grad():
        expected = model(**batch(model)).logits
    model.save_pretrained(tmp_path / "saved")
    if lora_on:
        model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch(model)).logits, expected, rtol=1e-5, atol=1e-5)
    after = effective(model)
    assert after.keys() == before.keys()
    idle = [name for name in after if ".head." in name or "pooler" in name]
    for name in after.keys() - set(idle):
        moved = not torch.equal(after[name], before[name])
        # A class token or mask that no patch depends on, and biases that cancel, stay where they are.
        if moved != should_move(name, trains, lora_on):
            assert not moved and ("k_proj.bias" in name or "key.bias" in name or "mask_token" in name), name
    assert all(torch.equal(after[name], before[name]) for name in idle)


def test_the_table_tells_lora_of_both_parts_apart():
    rows = {row["part"]: row for row in module_table(prepare_stage(build("own"), choose_stage("instruct", [], None)))}
    assert {"LoRA"} == {part for part, row in rows.items() if row["trainable"]}
    both = prepare_stage(build("own"), choose_stage("instruct", [], ["vision", "language_model"]))
    rows = {row["part"]: row["trainable"] for row in module_table(both) if row["trainable"]}
    # Rank 8 on queries and values: (32 + 32) * 8 each, in three layers; two layers of 32 to 32 and to 16.
    assert rows == {"vision_model_LoRA": 3 * 2 * 64 * 8, "LoRA": 2 * (64 + 48) * 8}


@pytest.mark.parametrize(
    ("trains", "lora_on", "message"),
    [
        (["vison"], None, r"`trains` names 'vison', but must name some of vision, .* as in vision\.layers\.18-23"),
        (["projection.layers.0"], None, "names 'projection.layers.0', but"),
        (["vision.layers."], None, "names 'vision.layers.', but"),
        (None, ["abstractor"], "Unknown part for LoRA: 'abstractor'. Choose one of vision, language_model"),
        (["language_model"], None, "'language_model' would train in full and 'language_model' by LoRA"),
        (["vision.layers.0"], ["vision"], r"remove 'vision.layers.0' from `trains`, or 'vision' from `lora_on`"),
        (["temporal"], ["vision"], "'temporal' would train in full and 'vision' by LoRA"),
        (["language_model"], ["vision"], "an adapter would hold all of it"),
        ([], [], "Nothing would train"),
    ],
)
def test_choices_that_cannot_be_are_told(trains, lora_on, message):
    with pytest.raises(ValueError, match=message):
        choose_stage("instruct", trains, lora_on)


@pytest.mark.parametrize("layers", ["3", "1-3", "2-1", "18-23"])
def test_layers_that_a_model_does_not_have_are_told(layers):
    with pytest.raises(ValueError, match=rf"'vision\.layers\.{layers}', but vision has the layers 0-2: choose some"):
        prepare_stage(build("dinov2"), choose_stage("pretrain", [f"vision.layers.{layers}"]))


@pytest.fixture
def recipe(files, llama, tmp_path):
    def write(**values):
        content = {
            "model": llama.checkpoint,
            "data": {
                "text": {"sources": [files.text(range(5))]},
                "images": {"sources": [files.captions(range(100, 106))]},
            },
            "output_dir": str(tmp_path / "out"), "max_length": 256, "per_device_train_batch_size": 2, "max_steps": 4,
            "logging_steps": 1, "save_steps": 2, "weight_decay": 0.1, **values,
        }  # fmt: skip
        return files.recipe(content)

    return write


RATES = {"vision": 3e-4, "abstractor": 1e-4, "language_model": 2e-5}
TRAINED = {"trains": ["abstractor", "vision.layers.1"], "stage": "instruct", "learning_rate": 5e-4, "warmup_steps": 2}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("named", [names for count in (1, 2, 3) for names in itertools.combinations(RATES, count)])
def test_every_weight_has_the_rate_of_its_part(recipe, named):
    """In the optimizer and in the log, on the schedule; each weight is in one group, with its own weight decay."""
    rates = {name: RATES[name] for name in named}
    trainer = train(recipe(**TRAINED, learning_rates=rates, save_strategy="no"), QUIET)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    seen = []
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(id(parameter))
            assert group["initial_lr"] == rates.get(rated_part(name), 5e-4), name
            assert group["weight_decay"] == (0.1 if name in decayed else 0), name
    assert sorted(seen) == sorted(names)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all("learning_rate" not in entry for entry in logged)
    for part in RATES:
        rate = rates.get(part, 5e-4)
        assert [entry[f"learning_rate_{part}"] for entry in logged] == pytest.approx([0, rate / 2, rate, rate / 2])


def test_weights_move_as_far_as_their_rate_says(recipe):
    """Adam's first step is the learning rate in each weight."""
    path = recipe(
        **{**TRAINED, "warmup_steps": 0}, learning_rates=RATES, max_steps=1, max_grad_norm=0.0, save_strategy="no"
    )
    owl, args = parse_recipe(path, QUIET)
    before = {name: weight.detach().clone() for name, weight in load_model(owl, args).named_parameters()}
    trainer = train(path, [*QUIET, "--weight_decay", "0"])
    moved: dict[str, float] = {}
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad and "lora_" not in name:
            distance = (weight - before[name]).abs().max().item()
            moved[rated_part(name)] = max(moved.get(rated_part(name), 0), distance)
    assert moved == {part: pytest.approx(RATES[part], rel=1e-2) for part in ("vision", "abstractor")}


def test_a_run_with_rates_by_part_goes_on_as_it_was(recipe):
    """Its weights are those of a run that was not interrupted; another rate is refused."""
    path = recipe(**TRAINED, learning_rates=RATES)
    whole = train(path, [*QUIET, "--output_dir", str(path.parent / "whole")])
    stopped = path.parent / "whole" / "checkpoint-2"
    again = train(path, [*QUIET, "--output_dir", str(path.parent / "again"), "--resume_from_checkpoint", str(stopped)])
    assert again.train_dataset.first == 2
    for (name, expected), actual in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(actual, expected), name
    with pytest.raises(ValueError, match=r"learning_rates: {'abstractor': 0\.0001, .*now {'abstractor': 0\.01}"):
        train(
            path, [*QUIET, "--output_dir", str(path.parent / "whole"), "--learning_rates", "{abstractor: 1e-2}",
                   "--resume_from_checkpoint", str(stopped)],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rates": {"vision": 1e-4}}, "names 'vision', but the trained parts are abstractor, language_model"),
        ({"learning_rates": {"LoRA": 1e-4}}, "names 'LoRA', but the trained parts are"),
        ({"learning_rates": {"abstractor": "fast"}}, "rate of 'abstractor' is 'fast', but must be a number from 0"),
        ({"learning_rates": {"abstractor": -1}}, "rate of 'abstractor' is -1, but must be a number from 0"),
        ({"learning_rates": {"abstractor": True}}, "rate of 'abstractor' is True, but must be a number from 0"),
        ({"learning_rates": {"abstractor": [1]}}, r"rate of 'abstractor' is \[1\], but must be a number from 0"),
        ({"learning_rates": 5}, "`learning_rates` is 5, but must be of type dict"),
        ({"trains": "abstractor"}, "`trains` is 'abstractor', but .*list"),
        ({"learning_rates": {"abstractor": 1e-4}, "optim_target_modules": ["q"]}, "exclude each other"),
        ({"quantize": "4bit", "lora_on": ["vision"]}, "`quantize` needs a stage with LoRA"),
        (
            {"quantize": "4bit", "lora_on": ["vision"], "trains": ["language_model.layers.0"]},
            "leave the language model out of `trains`",
        ),
    ],
)
def test_wrong_rates_and_parts_are_told(recipe, values, message):
    with pytest.raises(ValueError, match=message):
        train(recipe(**values), QUIET)


def test_a_dry_run_shows_parts_and_rates(recipe):
    console = Console(record=True, width=200, file=io.StringIO())
    preview(recipe(**TRAINED, learning_rates={"abstractor": "1e-4"}), ["--use_cpu", "true"], console)
    rows = {line.split("│")[1].strip(): line for line in console.export_text().splitlines() if line.count("│") > 4}
    assert all(rate in rows[part] for part, rate in [("abstractor", "0.0001"), ("vision_model", "0.0005")])
    assert "0.0005" in rows["LoRA"] and "0.000" not in rows["language_model"]


def test_layers_are_found_by_structure():
    """Layers of experts lie within layers."""
    from torch import nn

    model = build("own")
    for layer in model.model.language_model.layers:
        layer.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(8))
    prepare_stage(model, choose_stage("kosmos", ["language_model.layers.1"]))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.startswith("model.language_model.layers.1.")}


def test_layers_of_the_vision_model_train_with_activation_checkpointing(recipe):
    """Their inputs need no gradient."""
    for lora_on, trains in ((["vision"], []), ([], ["vision.layers.1"])):
        path = recipe(lora_on=lora_on, trains=trains, save_strategy="no", gradient_checkpointing=True, max_steps=1)
        owl, args = parse_recipe(path, QUIET)
        before = {name: weight.detach().clone() for name, weight in load_model(owl, args).named_parameters()}
        trainer: OwlTrainer = train(path, [*QUIET, "--learning_rate", "1e-2", "--output_dir", f"{path}-{len(trains)}"])
        moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
        assert moved and all("vision_model" in name for name in moved)
