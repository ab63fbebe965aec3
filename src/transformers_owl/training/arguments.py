"""The settings of a recipe: our own, and all of `transformers.TrainingArguments`."""

import enum
import math
import types
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..mplug_owl.configuration_mplug_owl import check_names, expect
from .augmentation import Augmentation
from .metrics import METRICS, check_metrics
from .mixture import Group, Policy
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
    Settings of a recipe for the Owl and its data. The help of each field describes it.

    Raises:
        ValueError: for a value that is not allowed.
    """

    model: str = field(
        default="", metadata={"help": "Folder or Hub repository to start from, also of an original release."}
    )
    stage: str = field(default="instruct", metadata={"help": f"Stage, which sets what trains: {', '.join(STAGES)}."})
    trains: list[str] | None = field(
        default=None,
        metadata={"help": "Parts or layers to train instead of the stage's, as in: abstractor vision.layers.18-23."},
    )
    lora_on: list[str] | None = field(
        default=None, metadata={"help": "Parts that get LoRA instead of the stage's: language_model, vision."}
    )
    learning_rates: dict | str | None = field(
        default=None, metadata={"help": "Learning rates by trained part, where they differ from learning_rate."}
    )
    data: dict | str | None = field(
        default=None, metadata={"help": "Groups of training data by name, each with `weight` and `sources`."}
    )
    eval_data: dict | str | None = field(
        default=None, metadata={"help": "Groups of evaluation data; their weights have no effect."}
    )
    metrics: list[str] = field(
        default_factory=list,
        metadata={"help": f"Metrics of answers to eval_data, at every evaluation: {', '.join(METRICS)}."},
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows per optimizer step over all devices; sets gradient_accumulation_steps."},
    )
    max_length: int = field(
        default=1024, metadata={"help": "Maximum positions of a row, with 65 for each image or video."}
    )
    packing: bool = field(
        default=False, metadata={"help": "Pack conversations into rows of max_length, without attention between them."}
    )
    num_frames: int | None = field(default=None, metadata={"help": "Frames per video (default: the processor's)."})
    max_crops: int | None = field(
        default=None, metadata={"help": "Maximum cells to cut images into, too; 1 cuts none (default: the model's)."}
    )
    crop: list[float] = field(
        default_factory=lambda: [0.5, 1.0],
        metadata={"help": "Smallest and largest share of an image in its random crop; 1 1 keeps images whole."},
    )
    flip: bool = field(default=False, metadata={"help": "Mirror half of the images."})
    on_error: str = field(default="stop", metadata={"help": "What to do with unusable samples: stop or skip."})
    max_skipped: float = field(default=0.05, metadata={"help": "Maximum share of skipped samples."})
    lora_r: int = field(default=8, metadata={"help": "Rank of LoRA, in stages with LoRA."})
    lora_alpha: int = field(default=32, metadata={"help": "Alpha of LoRA."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of LoRA."})
    quantize: str = field(
        default="none", metadata={"help": "Quantisation of the language model by bitsandbytes (QLoRA): none or 4bit."}
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "original, language_model (its own) or a Jinja file (default: the model's)."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa or flash_attention_2 (default: the library's choice)."}
    )
    compile_layers: bool = field(default=False, metadata={"help": "Compile each layer, for faster steps on a GPU."})
    watch: list[str] = field(
        default_factory=list, metadata={"help": "Images or videos that the model describes at every evaluation."}
    )
    watch_prompt: str | None = field(default=None, metadata={"help": "Question about them (default: none)."})
    peak_tflops: float | None = field(
        default=None, metadata={"help": "Peak TFLOP/s of one device, for MFU (default: by data sheet, else measured)."}
    )

    def __post_init__(self):
        if not self.model:
            raise ValueError("The recipe needs `model`, a folder or Hub repository to start from.")
        if Path(self.model, "adapter_config.json").exists():
            raise ValueError(f"{self.model} is an adapter: merge it onto its base first (conversion/merge_adapter.py).")
        self.parts = choose_stage(self.stage, self.trains, self.lora_on)
        self.rates = self.learning_rates = _rates(_tree(self.learning_rates, "learning_rates"), rated_parts(self.parts))
        expect(self.lora_dropout < 1, "`lora_dropout`", self.lora_dropout, "below 1")
        expect(len(self.crop) == 2, "`crop`", self.crop, "two shares of the area, as in [0.5, 1.0]")
        check_names([self.quantize], ("none", "4bit"), "quantisation")
        if self.quantize != "none" and any("language_model" in part for part in self.parts.trains):
            raise ValueError("4-bit weights cannot train: leave the language model out of `trains`.")
        if self.quantize != "none" and "language_model" not in self.parts.lora:
            raise ValueError(f"4-bit weights cannot train: `quantize` needs a stage with LoRA, not {self.stage!r}.")
        fits = self.chat_template in (None, "original", "language_model") or Path(self.chat_template).is_file()
        expect(fits, "`chat_template`", self.chat_template, "original, language_model or a Jinja file")
        self.data, self.eval_data = _tree(self.data, "data"), _tree(self.eval_data, "eval_data")
        if not self.data:
            raise ValueError("The recipe needs `data`, groups by name, each with `sources`.")
        check_metrics(self.metrics)
        if self.metrics and not self.eval_data:
            raise ValueError(f"`metrics` is {self.metrics}, but there is no `eval_data`: add some, or leave it out.")
        self.augmentation = Augmentation((self.crop[0], self.crop[1]), self.flip)
        self.policy = Policy(self.on_error, self.max_skipped)

    def groups(self, which: str = "data") -> dict[str, Group]:
        """The groups of `data` or `eval_data`, with their files opened."""
        return {name: Group.from_dict(entry) for name, entry in (vars(self)[which] or {}).items()}


KINDS = [OwlArguments, TrainingArguments]


class RecipeParser(HfArgumentParser):
    """Raises a ValueError where argparse would print two hundred options and exit."""

    def __init__(self):
        super().__init__(KINDS, allow_abbrev=False)  # type: ignore[arg-type]
        self.set_defaults(**DEFAULTS)
        self.names = sorted(each.name for kind in KINDS for each in fields(kind) if each.init)

    def error(self, message):
        raise ValueError(message)


def parse_recipe(recipe: str | Path | None, options: list[str]) -> tuple[OwlArguments, TrainingArguments]:
    """
    Reads the settings of a recipe, overridden by command-line options.

    Args:
        recipe (`str` or `Path`, *optional*): A YAML file. It may name another recipe as its `base`, whose values are
            the defaults.
        options (`list[str]`): `--name value ...`; `--data` and `--eval_data` take YAML.

    Returns:
        `tuple[OwlArguments, TrainingArguments]`: Our own settings, and the library's.

    Raises:
        ValueError: for unknown settings, with the nearest known one, and for invalid values.
    """
    parser = RecipeParser()
    if recipe is not None:
        parser.set_defaults(**_read(Path(recipe), parser.names))
    owl, training, rest = parser.parse_args_into_dataclasses(
        options, return_remaining_strings=True, look_for_args_file=False
    )
    check_names(
        [word.removeprefix("--").partition("=")[0] for word in rest if word.startswith("--")], parser.names, "setting"
    )
    if rest:
        raise ValueError(f"{rest[0]!r} is neither a setting nor a value: write `--name value`.")
    values = {**vars(training), **vars(owl)}
    for name, least in LEAST.items():
        value = values[name]
        expect(value is None or value >= least, f"`{name}`", value, f"at least {least}")
    if owl.global_batch_size is not None:
        rows = training.per_device_train_batch_size * training.world_size
        if owl.global_batch_size % rows:
            raise ValueError(
                f"`global_batch_size` is {owl.global_batch_size}, but must be a multiple of {rows} (per_device_train_"
                f"batch_size {training.per_device_train_batch_size} x {training.world_size} processes)."
            )
        training.gradient_accumulation_steps = owl.global_batch_size // rows
    return owl, training


def _read(recipe: Path, names: list[str], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    if recipe.resolve() in above:
        chain = " -> ".join(str(path) for path in (*above, recipe.resolve()))
        raise ValueError(f"A recipe cannot be its own base: {chain}.")
    values = _tree(recipe.read_text(encoding="utf-8"), str(recipe))
    check_names(values, ["base", *names], f"setting in {recipe}")
    base = values.pop("base", None)
    hints = {name: hint for kind in KINDS for name, hint in get_type_hints(kind).items()}
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(
                f"{recipe}: `{name}` is {value!r}, but must be of type {_described(hints[name])}. (YAML reads a bare "
                "yes, no, on or off as true or false: put words in quotes.)"
            )
    if base is None:
        return values
    expect(isinstance(base, str), f"{recipe}: `base`", base, "the path of another recipe")
    return _read(recipe.parent / base, names, (*above, recipe.resolve())) | values


def _fits(value: Any, kind: Any) -> bool:
    """Whether a YAML value is of a field's type; a string may be any single value, as on the command line."""
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
    """Checks learning rates by part, and converts them to numbers."""
    for part, rate in rates.items():
        if part not in parts:
            raise ValueError(
                f"`learning_rates` names {part!r}, but the trained parts are {', '.join(sorted(parts))}: leave it out, "
                "or choose another `stage` or `trains`."
            )
        try:
            rates[part] = float(rate)
        except (TypeError, ValueError):
            rates[part] = -1.0
        if isinstance(rate, bool) or not 0 <= rates[part] < math.inf:
            raise ValueError(f"The learning rate of {part!r} is {rate!r}, but must be a number from 0.")
    return rates


def _tree(value: dict | str | None, name: str) -> dict[str, Any]:
    """A mapping, or the YAML of one."""
    try:
        tree = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(tree, dict | None):
        raise ValueError(f"{name} is a {type(tree).__name__}, but must be a mapping of names to values.")
    return tree or {}
