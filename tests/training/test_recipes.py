"""Recipes say what the paper and the original say; every name reaches what it names; a wrong one is told."""

from pathlib import Path

import pytest
import yaml

from transformers_owl.training.arguments import LEAST, RecipeParser, parse_recipe
from transformers_owl.training.augmentation import Augmentation


CONFIGS = Path(__file__).parent.parent.parent / "configs"
# Paper, Table 4 and section 4.1 (stage 1), Table 5 (stage 2); the original's two scripts.
EXPECTED = {
    "pretrain": {
        "max_steps": 50000, "warmup_steps": 375, "learning_rate": 2e-4, "lr_scheduler_type": "cosine",
        "weight_decay": 0.01, "adam_beta1": 0.9, "adam_beta2": 0.98, "adam_epsilon": 1e-6, "max_length": 512,
        "global_batch_size": 4096, "stage": "pretrain",
    },
    "pretrain-section-4.1": {
        "max_steps": 50000, "warmup_steps": 2000, "learning_rate": 1e-4, "weight_decay": 0.1, "adam_beta2": 0.98,
        "global_batch_size": 4096, "max_length": 512,
    },
    "instruct": {
        "max_steps": 2000, "warmup_steps": 50, "learning_rate": 2e-5, "lr_scheduler_type": "cosine",
        "weight_decay": 1e-4, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-6, "max_length": 1024,
        "global_batch_size": 256, "stage": "instruct", "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.05,
    },
    "instruct-lora-only": {"stage": "instruct-lora-only", "max_steps": 2000},
    "instruct-full": {"stage": "instruct-full", "max_steps": 2000},
    "original-lora": {
        "max_steps": 4236, "warmup_steps": 50, "learning_rate": 2e-5, "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-6}, "weight_decay": 1e-4, "max_grad_norm": 1.0, "max_length": 1024,
        "global_batch_size": 256, "flip": True, "stage": "instruct-lora-only",
    },
    "original-full": {"max_steps": 4236, "stage": "instruct-full", "learning_rate": 2e-5},
    "minigpt4-pretrain": {"stage": "minigpt4", "max_steps": 50000},
    "minigpt4-instruct": {"stage": "minigpt4", "max_steps": 2000},
    "kosmos-pretrain": {"stage": "kosmos", "max_steps": 50000},
    "kosmos-instruct": {"stage": "kosmos", "max_steps": 2000},
    "llava-pretrain": {"stage": "llava-pretrain", "max_steps": 50000},
    "llava-instruct": {"stage": "llava-instruct", "max_steps": 2000},
    "modern-pretrain": {
        "stage": "pretrain", "max_steps": 20000, "max_crops": 6, "crop": [1, 1], "max_length": 1024,
        "rates": {"vision": 2e-5, "abstractor": 2e-4}, "global_batch_size": 512, "chat_template": None,
    },
    "modern-instruct": {
        "stage": "instruct", "max_steps": 2000, "max_crops": None, "crop": [1, 1], "max_length": 2048, "lora_r": 32,
        "lora_alpha": 64, "rates": {"abstractor": 2e-5, "language_model": 1e-4}, "chat_template": None,
    },
    "tiny-pretrain": {"stage": "pretrain", "max_steps": 20},
    "tiny-instruct": {"stage": "instruct", "max_steps": 20},
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_have_their_values(path):
    owl, training = parse_recipe(path, ["--use_cpu", "true"])
    values = {**vars(training), **vars(owl)}
    for name, expected in EXPECTED[path.stem].items():
        assert values[name] == expected, name
    assert training.output_dir == f"build/{path.stem}"
    assert training.gradient_accumulation_steps * training.per_device_train_batch_size == owl.global_batch_size


def test_no_recipe_is_forgotten():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(EXPECTED)


def test_table_5_joins_equal_parts():
    owl, _ = parse_recipe(CONFIGS / "instruct.yaml", ["--use_cpu", "true"])
    assert {name: group["weight"] for name, group in owl.data.items()} == {"text": 128, "multimodal": 128}


def test_options_override_the_recipe(tmp_path):
    (tmp_path / "base.yaml").write_text("model: a\nlearning_rate: 1e-3\ndata: {x: {sources: []}}\ncrop: [0.2, 0.9]")
    (tmp_path / "recipe.yaml").write_text("base: base.yaml\nmodel: b\nlora_r: 3")
    data = "{y: {sources: [{format: alpaca, path: z.json}]}}"
    owl, training = parse_recipe(
        tmp_path / "recipe.yaml",
        ["--lora_r=5", "--adam_beta2", "0.5", "--data", data, "--flip", "--bf16", "true", "--use_cpu", "true"],
    )
    assert (owl.model, owl.lora_r, training.learning_rate, training.adam_beta2) == ("b", 5, 1e-3, 0.5)
    assert owl.data == yaml.safe_load(data)
    assert owl.augmentation == Augmentation((0.2, 0.9), flip=True)
    assert training.bf16
    assert training.report_to == ["tensorboard"]
    owl, training = parse_recipe(None, ["--model", "m", "--data", data, "--report_to", "none", "--crop", "1", "1"])
    assert (owl.model, training.report_to, owl.crop) == ("m", [], [1, 1])


def test_every_training_argument_is_a_setting():
    from dataclasses import fields

    from transformers import TrainingArguments

    names = RecipeParser().names
    assert {field.name for field in fields(TrainingArguments) if field.init} <= set(names)
    assert len(names) == len(set(names))


GOOD = {"model": "m", "data": {"x": {"sources": [{"format": "alpaca", "path": "y"}]}}}


def test_an_adapter_is_no_model_to_start_from(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is an adapter: merge it onto its base first"):
        parse_recipe(None, ["--model", str(tmp_path), "--data", yaml.safe_dump(GOOD["data"])])


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ({**GOOD, "learning_rat": 1}, [], "Unknown setting in .*: 'learning_rat'. Did you mean 'learning_rate'"),
        (GOOD, ["--lora-rr", "2"], "Unknown setting: 'lora-rr'"),
        (GOOD, ["--max_stepss=2"], "Unknown setting: 'max_stepss'. Did you mean 'max_steps'"),
        (GOOD, ["stray"], "'stray' is neither a setting nor a value"),
        (GOOD, ["--max_steps", "many"], "max-steps: invalid int value: 'many'"),
        (GOOD, ["--learn", "1"], "Unknown setting: 'learn'"),
        ({**GOOD, "stage": "instuct"}, [], "Unknown stage: 'instuct'. Did you mean 'instruct'"),
        ({**GOOD, "on_error": "ignore"}, [], "Unknown value of `on_error`: 'ignore'. Choose one of stop, skip"),
        ({**GOOD, "max_skipped": 1}, [], "`max_skipped` is 1, but must be a share from 0"),
        ({**GOOD, "crop": [0, 1]}, [], "`crop` is .0, 1., but must be two shares of the area"),
        ({**GOOD, "quantize": "4bit", "stage": "pretrain"}, [], "`quantize` needs a stage with LoRA, not 'pretrain'"),
        ({**GOOD, "crop": 0.5}, [], r"`crop` is 0\.5, but must be of type list\[float\]"),
        ({**GOOD, "crop": [0.2, 0.5, 1]}, [], r"`crop` is \[0\.2, 0\.5, 1\], but must be two shares"),
        (GOOD, ["--crop", "0.5"], r"`crop` is \[0\.5\], but must be two shares"),
        ({**GOOD, "watch": "a.png"}, [], r"`watch` is 'a\.png', but must be of type list\[str\]"),
        ({**GOOD, "flip": 3}, [], "`flip` is 3, but must be of type bool"),
        ({**GOOD, "lora_r": 2.5}, [], r"`lora_r` is 2\.5, but must be of type int"),
        ({**GOOD, "seed": True}, [], "`seed` is True, but must be of type int"),
        ({**GOOD, "model": ["a"]}, [], r"`model` is \['a'\], but must be of type str"),
        ({**GOOD, "save_strategy": False}, [], "`save_strategy` is False, .* put words in quotes"),
        ({**GOOD, "learning_rate": [1]}, [], r"`learning_rate` is \[1\], but must be of type float"),
        ({**GOOD, "base": "recipe.yaml"}, [], r"cannot be its own base: .*recipe\.yaml -> .*recipe\.yaml"),
        ({**GOOD, "base": 5}, [], "`base` is 5, but must be the path of another recipe"),
        ({"data": {}}, [], "The recipe needs `model`"),
        ({"model": "m"}, [], "The recipe needs `data`"),
        ({**GOOD, "data": [1]}, [], r"`data` is \[1\], but must be of type dict \| str \| None"),
        (GOOD, ["--data", "{x: "], "data is not valid YAML"),
        (
            {**GOOD, "global_batch_size": 9, "per_device_train_batch_size": 2},
            [],
            "`global_batch_size` is 9, but must be a multiple of 2",
        ),
    ],
)
def test_wrong_recipes_are_told(tmp_path, recipe, options, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match=message):
        parse_recipe(path, options)


@pytest.mark.parametrize("name", LEAST)
def test_values_below_the_least_are_told(name):
    for value in (LEAST[name] - 1, -8):
        options = ["--model", "m", "--data", yaml.safe_dump(GOOD["data"]), "--use_cpu", "true", f"--{name}={value}"]
        with pytest.raises(ValueError, match=rf"`{name}` is {value}(\.0)?, but must be at least {LEAST[name]}"):
            parse_recipe(None, options)


@pytest.mark.parametrize("data", [5, [1], {"sources": 5}, {"sources": [5]}, {"sources": []}, {"weight": True}])
def test_groups_of_other_forms_are_told(data):
    owl, _ = parse_recipe(None, ["--model", "m", "--data", yaml.safe_dump({"a": data}), "--use_cpu", "true"])
    with pytest.raises(ValueError, match=r"A (group|source) of data .*"):
        owl.groups()
