"""What a recipe may say: our own names, and all of `transformers.TrainingArguments`."""

import enum
import math
import types
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments

from .augmentation import Augmentation
from .metrics import METRICS, check_metrics
from .mixture import Group, Policy
from .names import check_names
from .stages import STAGES, choose_stage, rated_parts


# The least that a setting may be.
LEAST = {
    "global_batch_size": 1, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1, "max_length": 1, "num_frames": 1, "max_crops": 1,
    "lora_r": 1, "lora_alpha": 1, "lora_dropout": 0, "peak_tflops": 0, "learning_rate": 0, "weight_decay": 0,
    "max_grad_norm": 0, "num_train_epochs": 0, "dataloader_num_workers": 0, "save_total_limit": 1,
}  # fmt: skip
# Where this command departs from the library's defaults.
DEFAULTS = {"report_to": "tensorboard", "remove_unused_columns": False, "save_total_limit": 3, "logging_steps": 10}


@dataclass
class OwlArguments:
    """
    The part of a recipe that is about the Owl and its data. Each field's help says what it means.

    Raises:
        ValueError: for a value that is not allowed, with the nearest one that is.
    """

    model: str = field(
        default="", metadata={"help": "Folder or Hub repository to start from; a checkpoint of the release works."}
    )
    stage: str = field(default="instruct", metadata={"help": f"What trains: one of {', '.join(STAGES)}."})
    trains: list[str] | None = field(
        default=None,
        metadata={"help": "Parts that train in place of the stage's, layers too: abstractor vision.layers.18-23."},
    )
    lora_on: list[str] | None = field(
        default=None, metadata={"help": "Parts that get LoRA in place of the stage's: language_model, vision."}
    )
    learning_rates: dict | str | None = field(
        default=None, metadata={"help": "Of parts that train, where they differ from learning_rate."}
    )
    data: dict | str | None = field(
        default=None, metadata={"help": "Groups of training data by name, each with `weight` and `sources`."}
    )
    eval_data: dict | str | None = field(
        default=None, metadata={"help": "Groups of data for evaluation; weights have no effect."}
    )
    metrics: list[str] = field(
        default_factory=list,
        metadata={"help": f"Of answers to eval_data at every evaluation: {', '.join(METRICS)}."},
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows of an optimizer step on all devices together; sets gradient_accumulation_steps."},
    )
    max_length: int = field(
        default=1024, metadata={"help": "Positions of a row, 65 for each picture or video included."}
    )
    packing: bool = field(
        default=False, metadata={"help": "Conversations end to end in rows of max_length, none seeing another."}
    )
    num_frames: int | None = field(default=None, metadata={"help": "Frames of a video (default: the processor's)."})
    max_crops: int | None = field(
        default=None, metadata={"help": "Most cells that an image is also cut into; 1: none (default: the model's)."}
    )
    crop: list[float] = field(
        default_factory=lambda: [0.5, 1.0],
        metadata={"help": "Least and largest share of a picture in its random crop; 1 1 keeps pictures whole."},
    )
    flip: bool = field(default=False, metadata={"help": "Mirror half of the pictures."})
    on_error: str = field(default="stop", metadata={"help": "For samples that cannot be used: stop, or skip."})
    max_skipped: float = field(default=0.05, metadata={"help": "Largest share of samples that may be left out."})
    lora_r: int = field(default=8, metadata={"help": "Rank of LoRA, in stages that have it."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of LoRA."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of LoRA."})
    quantize: str = field(
        default="none", metadata={"help": "Language model in 4 bits (QLoRA) by bitsandbytes: none, or 4bit."}
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "original, language_model (its own), or a Jinja file (default: the model's)."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa or flash_attention_2 (default: the library's choice)."}
    )
    compile_layers: bool = field(default=False, metadata={"help": "Compile each layer: faster steps on a GPU."})
    watch: list[str] = field(
        default_factory=list, metadata={"help": "Pictures or videos that the model describes at every evaluation."}
    )
    watch_prompt: str | None = field(default=None, metadata={"help": "What is asked about them (default: nothing)."})
    peak_tflops: float | None = field(
        default=None, metadata={"help": "What one device can do, for MFU (default: data sheet, else measured)."}
    )

    def __post_init__(self):
        if not self.model:
            raise ValueError("The recipe needs `model`: a folder or a Hub repository to start from.")
        if Path(self.model, "adapter_config.json").exists():
            raise ValueError(f"{self.model} is an adapter: merge it onto its base first (conversion/merge_adapter.py).")
        check_names([self.stage], STAGES, "a stage")
        self.parts = choose_stage(self.stage, self.trains, self.lora_on)
        self.rates = self.learning_rates = _rates(_tree(self.learning_rates, "learning_rates"), rated_parts(self.parts))
        if not self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` is {self.lora_dropout}, but a share below 1 was expected.")
        if len(self.crop) != 2:
            raise ValueError(f"`crop` is {self.crop}, but two shares of the area were expected, as in [0.5, 1.0].")
        check_names([self.quantize], ("none", "4bit"), "a quantisation")
        if self.quantize != "none" and any("language_model" in part for part in self.parts.trains):
            raise ValueError("Weights in 4 bits cannot train: leave the language model out of `trains`.")
        if self.quantize != "none" and "language_model" not in self.parts.lora:
            raise ValueError(f"Weights in 4 bits cannot train: `quantize` needs a stage with LoRA, not {self.stage!r}.")
        if self.chat_template not in (None, "original", "language_model") and not Path(self.chat_template).is_file():
            raise ValueError(
                f"`chat_template` is {self.chat_template!r}, but original, language_model or a Jinja file was expected."
            )
        self.data, self.eval_data = _tree(self.data, "data"), _tree(self.eval_data, "eval_data")
        if not self.data:
            raise ValueError("The recipe needs `data`: groups by name, each with `sources`.")
        check_metrics(self.metrics)
        if self.metrics and not self.eval_data:
            raise ValueError(f"`metrics` is {self.metrics}, but there is no `eval_data` to compare answers with.")
        self.augmentation = Augmentation((self.crop[0], self.crop[1]), self.flip)
        self.policy = Policy(self.on_error, self.max_skipped)

    def groups(self, which: str = "data") -> dict[str, Group]:
        """The groups of `data` or `eval_data`, their files opened."""
        return {name: Group.from_dict(entry) for name, entry in (vars(self)[which] or {}).items()}


KINDS = [OwlArguments, TrainingArguments]


class RecipeParser(HfArgumentParser):
    """Fails by a ValueError where argparse would print two hundred options and exit."""

    def __init__(self):
        super().__init__(KINDS, allow_abbrev=False)  # type: ignore[arg-type]
        self.set_defaults(**DEFAULTS)
        self.names = sorted(each.name for kind in KINDS for each in fields(kind) if each.init)

    def error(self, message):
        raise ValueError(message)


def parse_recipe(recipe: str | Path | None, options: list[str]) -> tuple[OwlArguments, TrainingArguments]:
    """
    A recipe's values, overridden by options of the command line.

    Args:
        recipe: A YAML file, or nothing if the options say everything. It may name another one as its `base`, whose
            values hold where it has none.
        options (`list[str]`): `--name value ...`; `--data` and `--eval_data` take YAML.

    Raises:
        ValueError: for unknown names, with the nearest one that exists, and for values of another type.
    """
    parser = RecipeParser()
    if recipe is not None:
        parser.set_defaults(**_read(Path(recipe), parser.names))
    owl, training, rest = parser.parse_args_into_dataclasses(
        options, return_remaining_strings=True, look_for_args_file=False
    )
    check_names(
        [word.removeprefix("--").partition("=")[0] for word in rest if word.startswith("--")], parser.names, "a setting"
    )
    if rest:
        raise ValueError(f"{rest[0]!r} is neither a setting nor the value of one: write `--name value`.")
    values = {**vars(training), **vars(owl)}
    for name, least in LEAST.items():
        value = values[name]
        if value is not None and value < least:
            raise ValueError(f"`{name}` is {value}, but a number from {least} was expected.")
    if owl.global_batch_size is not None:
        rows = training.per_device_train_batch_size * training.world_size
        if owl.global_batch_size % rows:
            raise ValueError(
                f"global_batch_size={owl.global_batch_size} is no multiple of {rows} = per_device_train_batch_size="
                f"{training.per_device_train_batch_size} x {training.world_size} processes."
            )
        training.gradient_accumulation_steps = owl.global_batch_size // rows
    return owl, training


def _read(recipe: Path, names: list[str], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    if recipe.resolve() in above:
        chain = " -> ".join(str(path) for path in (*above, recipe.resolve()))
        raise ValueError(f"A recipe cannot be its own base: {chain}.")
    values = _tree(recipe.read_text(encoding="utf-8"), str(recipe))
    check_names(values, ["base", *names], f"a setting, but {recipe} has it")
    base = values.pop("base", None)
    hints = {name: hint for kind in KINDS for name, hint in get_type_hints(kind).items()}
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(
                f"{recipe}: `{name}` is {value!r}, but {_described(hints[name])} was expected. (YAML reads a bare yes, "
                "no, on or off as true or false: put words in quotes.)"
            )
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"{recipe}: `base` is {base!r}, but the path of another recipe was expected.")
    return _read(recipe.parent / base, names, (*above, recipe.resolve())) | values


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of YAML is of a field's type; text stands for any single value, as on the command line."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, str) if kind is not bool else isinstance(value, bool | str)
    if kind is float:
        return isinstance(value, int | float | str)
    if kind in (int, str) or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return isinstance(value, str) or (kind is int and isinstance(value, int))
    return isinstance(value, origin or kind)


def _described(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind)) if isinstance(kind, type) and not get_args(kind) else str(kind)


def _rates(rates: dict[str, Any], parts: set[str]) -> dict[str, float]:
    """Learning rates by part, once they are numbers, and of parts that train."""
    for part, rate in rates.items():
        if part not in parts:
            raise ValueError(
                f"`learning_rates` names {part!r}, but what trains is {', '.join(sorted(parts))}: leave it out, or "
                "choose another `stage` or `trains`."
            )
        try:
            rates[part] = float(rate)
        except (TypeError, ValueError):
            rates[part] = -1.0
        if isinstance(rate, bool) or not 0 <= rates[part] < math.inf:
            raise ValueError(f"The learning rate of {part!r} is {rate!r}, but a number from 0 was expected.")
    return rates


def _tree(value: dict | str | None, name: str) -> dict[str, Any]:
    """A mapping, or the YAML of one."""
    try:
        tree = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no YAML: {error}") from error
    if not isinstance(tree, dict | None):
        raise ValueError(f"{name} holds {type(tree).__name__}, but names with values were expected.")
    return tree or {}
