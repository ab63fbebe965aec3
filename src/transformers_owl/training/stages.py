"""Which parts each stage trains: the paper's two stages, and the paradigms of its Figure 1."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..mplug_owl.configuration_mplug_owl import check_names
from ..mplug_owl.vision_mplug_owl import tokens_and_idle_weights
from ..mplug_owl.weights_mplug_owl import WRAPPER
from .library import FROZEN_COPY, LORA, TRAINED_COPY


# Parts by the beginning of their parameters' names.
PARTS = {
    "vision": r"model\.vision_model\.",
    "abstractor": r"model\.abstractor\.",
    "temporal": r"model\.(vision_model\.layers\.\d+\.temporal\.|abstractor\.temporal_)",
    "projection": r"model\.abstractor\.(visual_fc\.|temporal_visual_fc\.|vit_eos)",
    "language_model": r"model\.language_model\.|model\.embedding_norm\.|lm_head\.",
}
# The modules that hold each part, as the model and weights files name them.
MODULES = {
    "vision": ("vision_model",),
    "abstractor": ("abstractor",),
    "temporal": ("vision_model", "abstractor"),
    "projection": ("abstractor",),
    "language_model": ("language_model", "embedding_norm", "lm_head"),
}
LAYERED = ("vision", "abstractor", "language_model")  # parts with layers, and each with a learning rate of its own
LAYERS = re.compile(rf"({'|'.join(LAYERED)})\.layers\.(\d+)(?:-(\d+))?")
ADAPTED = ("vision", "language_model")  # parts that LoRA may adapt
# What LoRA adapts: queries and values, as the release did.
QUERIES_AND_VALUES = ("q_proj|v_proj", "query_key_value|qkv_proj|c_attn|Wqkv|qkv", "q|v", "query|value")


@dataclass(frozen=True)
class Stage:
    """
    The trained parts of a stage.

    Args:
        trains (`tuple[str, ...]`): Names in `PARTS`, or layers of one, as in "vision.layers.18-23" or
            "vision.layers.23"; everything else is frozen.
        lora (`tuple[str, ...]`): Names in `ADAPTED`, which get LoRA.
        source (`str`): Source of the choice.
    """

    trains: tuple[str, ...]
    lora: tuple[str, ...]
    source: str


STAGES = {
    "pretrain": Stage(("vision", "abstractor"), (), "paper, section 3.2, stage 1"),
    "instruct": Stage(("abstractor",), ("language_model",), "paper, abstract, stage 2"),
    "instruct-lora-only": Stage((), ("language_model",), "paper, section 3.2, and the original code"),
    "instruct-full": Stage(("abstractor", "language_model"), (), "the original's script for full fine-tuning"),
    "minigpt4": Stage(("abstractor",), (), "Figure 1, MiniGPT-4, both stages"),
    "kosmos": Stage(("language_model",), (), "Figure 1, Kosmos-1, both stages"),
    "llava-pretrain": Stage(("abstractor",), (), "Figure 1, LLaVA, stage 1"),
    "llava-instruct": Stage(("abstractor", "language_model"), (), "Figure 1, LLaVA, stage 2"),
    "temporal": Stage(("temporal",), (), "videos only: parts that images do not use, so that answers about these stay"),
    "projection": Stage(("projection",), (), "only the linear layer, for an already trained abstractor"),
}


def choose_stage(name: str, trains: list[str] | None = None, lora_on: list[str] | None = None) -> Stage:
    """
    A stage of `STAGES`, optionally with other trained parts or other parts with LoRA.

    Args:
        name (`str`): A name in `STAGES`.
        trains, lora_on (`list[str]`, *optional*): Replace `trains` and `lora` of the [`Stage`].

    Raises:
        ValueError: for unknown names, and for parts that would train both in full and by LoRA.
    """
    check_names([name], STAGES, "stage")
    stage = STAGES[name]
    stage = replace(
        stage,
        trains=stage.trains if trains is None else tuple(trains),
        lora=stage.lora if lora_on is None else tuple(lora_on),
    )
    if not stage.trains and not stage.lora:
        raise ValueError("Nothing would train: name a part in `trains` or `lora_on`.")
    for part in stage.trains:
        if part not in PARTS and not LAYERS.fullmatch(part):
            raise ValueError(
                f"`trains` names {part!r}, but must name some of {', '.join(PARTS)}, or layers of {', '.join(LAYERED)} "
                "as in vision.layers.18-23, counted from 0."
            )
    check_names(stage.lora, ADAPTED, "part for LoRA")
    for part in stage.trains:
        for adapted in stage.lora:
            if set(_modules(part)) & set(MODULES[adapted]):
                raise ValueError(
                    f"{part!r} would train in full and {adapted!r} by LoRA, which keeps its weights frozen: remove "
                    f"{part!r} from `trains`, or {adapted!r} from `lora_on`."
                )
        if part == "language_model" and stage.lora:
            raise ValueError(
                f"'language_model' would train in full beside LoRA on {', '.join(stage.lora)}: an adapter would hold "
                "all of it. Remove it from `trains`, or set `lora_on: []`."
            )
    return stage


def prepare_stage(model, stage: str | Stage, lora_r: int = 8, lora_alpha: int = 32, lora_dropout: float = 0.05):
    """
    Freezes and unfreezes a model's parameters for a stage, and adds LoRA if the stage has it.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model; changed in place.
        stage (`str` or [`Stage`]): A name in `STAGES`, or the result of `choose_stage`.
        lora_r, lora_alpha, lora_dropout: Rank, alpha and dropout of LoRA, by default the original's.

    Returns:
        The model, or a `PeftModel` around it, whose adapter also holds the other trained parts.

    Raises:
        ValueError: for an unknown stage, for layers that the model does not have, and if no part of the model would
            train.
    """
    chosen = choose_stage(stage) if isinstance(stage, str) else stage
    pattern = re.compile("|".join(_pattern(model, part) for part in chosen.trains) or "$^")
    _, idle = tokens_and_idle_weights(model.config.vision_config)
    trained = {
        name
        for name, _ in model.named_parameters()
        if pattern.match(name) and name.removeprefix("model.vision_model.") not in idle
    }
    if not chosen.lora:
        if not trained:
            raise ValueError(f"Nothing would train: the model has no {' or '.join(chosen.trains)} part.")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=lora_targets(model, chosen.lora),
        modules_to_save=_saved_modules(model, chosen) or None,
    )
    adapted = get_peft_model(model.requires_grad_(False), config)
    for name, parameter in adapted.named_parameters():
        if TRAINED_COPY in name:
            parameter.requires_grad_(name.removeprefix(WRAPPER).replace(TRAINED_COPY, "") in trained)
    return adapted


def _modules(part: str) -> tuple[str, ...]:
    """The modules of a part, or of the part whose layers a name selects."""
    return MODULES[part.partition(".")[0]]


def _layers(model, part: str) -> tuple[str, range]:
    """
    The path and indices of the layers in a name such as "vision.layers.18-23". The layers of a part are its longest
    list of modules that is not nested in another.
    """
    name, first, last = LAYERS.fullmatch(part).groups()  # type: ignore[union-attr]
    path, count = _layer_list(model, name)
    numbers = range(int(first), int(last or first) + 1)
    if not numbers or numbers[-1] >= count:
        raise ValueError(f"`trains` names {part!r}, but {name} has the layers 0-{count - 1}: choose some of these.")
    return path, numbers


def _layer_list(model, part: str) -> tuple[str, int]:
    """The path of a part's list of layers, and their number."""
    root = f"model.{MODULES[part][0]}"
    lists: dict[str, int] = {}
    for name, module in model.get_submodule(root).named_modules(prefix=root):
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists[name] = len(module)
    if not lists:
        raise ValueError(f"The {part} has no list of layers to choose from: name the whole part.")
    return max(lists.items(), key=lambda item: item[1])


def _pattern(model, part: str) -> str:
    """A pattern of the start of a part's parameter names."""
    if part in PARTS:
        return PARTS[part]
    path, numbers = _layers(model, part)
    return rf"{re.escape(path)}\.({'|'.join(map(str, numbers))})\."


def _saved_modules(model, stage: Stage) -> list[str]:
    """The modules whose full weights an adapter holds."""
    saved: list[str] = []
    for part in stage.trains:
        if part in PARTS:
            saved += MODULES[part]
        else:
            path, numbers = _layers(model, part)
            saved += [f"{path}.{number}" for number in numbers]
    return sorted({name for name in saved if not any(name.startswith(f"model.{other}.") for other in saved)})


def blank_visual(stage: str | Stage, has_temporal: bool, world_size: int) -> str | None:
    """
    "image" or "video" if every micro-batch of a stage must contain one, else None. Several processes wait for each
    other's gradients, and if only visual parts train, a batch of text has none.
    """
    chosen = choose_stage(stage) if isinstance(stage, str) else stage
    reaches_text = "language_model" in chosen.lora or any("language_model" in _modules(each) for each in chosen.trains)
    if world_size == 1 and reaches_text:
        return None
    needs_video = "temporal" in chosen.trains or world_size > 1
    return "video" if has_temporal and needs_video else "image"


def trained_parts(stage: Stage) -> list[str]:
    """Names of the top-level modules that a stage trains in part or in full, in weights files and in the model."""
    return [name for part in stage.trains for name in _modules(part)]


def rated_parts(stage: Stage) -> set[str]:
    """The names in `LAYERED` that train in full, in part, or by LoRA."""
    found = {name for part in stage.trains for name in _modules(part)}
    return {part for part in LAYERED if MODULES[part][0] in found} | set(stage.lora)


def rated_part(name: str) -> str:
    """The name in `LAYERED` that a parameter belongs to."""
    path = name.split(".")
    return next((part for part in ("vision", "abstractor") if MODULES[part][0] in path), "language_model")


def lora_targets(model, parts: Iterable[str] = ("language_model",)) -> str:
    """
    A pattern of the parts' linear layers for queries and values, or of fused ones with keys.

    Raises:
        ValueError: if none has a known name; lists the names of the linear layers.
    """
    return "|".join(_queries_and_values(model, part) for part in parts)


def _queries_and_values(model, part: str) -> str:
    # Of the vision model the layers alone: no patch depends on a pooling head after them.
    path = r"model\.language_model" if part == "language_model" else re.escape(_layer_list(model, part)[0])
    linear = {name for name, layer in model.named_modules() if re.match(path, name) and isinstance(layer, nn.Linear)}
    names = [name for name, _ in model.named_modules()]
    for ends in QUERIES_AND_VALUES:
        pattern = rf"{path}\..*\.({ends})"
        if any(re.fullmatch(pattern, name) for name in names):
            return pattern
    kind = {"vision": model.config.vision_config, "language_model": model.config.text_config}[part].model_type
    raise ValueError(
        f"No layers for queries and values were found in the {part.replace('_', ' ')} `{kind}` to adapt by LoRA; its "
        f"linear layers are {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}. Choose `target_modules` "
        "in PEFT yourself."
    )


def module_table(model: nn.Module) -> list[dict]:
    """Rows of part, parameters, trainable parameters and dtypes; LoRA is a part, PEFT's frozen copies do not count."""
    rows: dict[str, dict] = {}
    for name, parameter in model.named_parameters():
        if FROZEN_COPY in name:
            continue
        part = part_of(name)
        row = rows.setdefault(part, {"part": part, "parameters": 0, "trainable": 0, "dtypes": set()})
        is_packed = parameter.dtype == torch.uint8  # bitsandbytes: two weights of 4 bits in a byte
        row["parameters"] += parameter.numel() * (2 if is_packed else 1)
        row["trainable"] += parameter.numel() * parameter.requires_grad
        row["dtypes"].add(str(parameter.dtype).removeprefix("torch."))
    return list(rows.values())


def part_of(name: str) -> str:
    """The part of a parameter, by its name: "vision_model", "abstractor", ..., "LoRA", "vision_model_LoRA"."""
    part = name.removeprefix(WRAPPER).removeprefix("model.").partition(".")[0]
    return part if LORA not in name else "LoRA" if part == "language_model" else f"{part}_LoRA"
