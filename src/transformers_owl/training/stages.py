"""What trains when: the paper's two stages, and the paradigms that it compares itself with (Figure 1)."""

import re
from dataclasses import dataclass

import torch
from torch import nn

from ..mplug_owl.vision_mplug_owl import tokens_and_idle_weights
from .library import FROZEN_COPY, LORA, WRAPPED


# Parts by the beginning of their parameters' names.
PARTS = {
    "vision": r"model\.vision_model\.",
    "abstractor": r"model\.abstractor\.",
    "temporal": r"model\.(vision_model\.layers\.\d+\.temporal\.|abstractor\.temporal_)",
    "projection": r"model\.abstractor\.(visual_fc\.|temporal_visual_fc\.|vit_eos)",
    "language_model": r"model\.language_model\.|model\.embedding_norm\.|lm_head\.",
}
# What LoRA adapts: queries and values, as the release did. The path keeps the vision model's layers out.
QUERIES_AND_VALUES = ("q_proj|v_proj", "query_key_value|qkv_proj|c_attn|Wqkv|qkv", "q|v", "query|value")


@dataclass(frozen=True)
class Stage:
    """
    A choice of what trains.

    Args:
        trains (`tuple[str, ...]`): Names of `PARTS`; everything else is frozen.
        lora (`bool`): Whether the language model gets LoRA.
        source (`str`): Where the choice comes from.
    """

    trains: tuple[str, ...]
    lora: bool
    source: str


STAGES = {
    "pretrain": Stage(("vision", "abstractor"), False, "paper, section 3.2, stage 1"),
    "instruct": Stage(("abstractor",), True, "paper, abstract, stage 2"),
    "instruct-lora-only": Stage((), True, "paper, section 3.2, and the original code"),
    "instruct-full": Stage(("abstractor", "language_model"), False, "the original's script for full fine-tuning"),
    "minigpt4": Stage(("abstractor",), False, "Figure 1, MiniGPT-4, both stages"),
    "kosmos": Stage(("language_model",), False, "Figure 1, Kosmos-1, both stages"),
    "llava-pretrain": Stage(("abstractor",), False, "Figure 1, LLaVA, stage 1"),
    "llava-instruct": Stage(("abstractor", "language_model"), False, "Figure 1, LLaVA, stage 2"),
    "temporal": Stage(("temporal",), False, "videos alone: what a picture never passes, so that answers to these stay"),
    "projection": Stage(("projection",), False, "the linear layer alone, for an abstractor that was trained before"),
}


def prepare_stage(model, stage: str, lora_r: int = 8, lora_alpha: int = 32, lora_dropout: float = 0.05):
    """
    Freezes and unfreezes a model's parameters for a stage and adds LoRA where the stage has it.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): Changed in place.
        stage (`str`): A name of `STAGES`.
        lora_r, lora_alpha, lora_dropout: As the original code had them.

    Returns:
        The model, or a `PeftModel` around it. Adapters of the latter hold the abstractor too where it trains.

    Raises:
        ValueError: for an unknown stage, and for one that trains nothing of this model.
    """
    if stage not in STAGES:
        raise ValueError(f"There is no stage {stage!r}: choose one of {', '.join(STAGES)}.")
    chosen = STAGES[stage]
    patterns = [PARTS[part] for part in chosen.trains]
    _, idle = tokens_and_idle_weights(model.config.vision_config)
    for name, parameter in model.named_parameters():
        is_idle = name.removeprefix("model.vision_model.") in idle
        parameter.requires_grad_(not is_idle and any(re.match(pattern, name) for pattern in patterns))
    if not chosen.lora:
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(f"The stage {stage!r} trains nothing: the model has no {' or '.join(chosen.trains)} part.")
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=lora_targets(model),
        modules_to_save=["abstractor"] if "abstractor" in chosen.trains else None,
    )
    return get_peft_model(model, config)


def blank_visual(stage: str, has_temporal: bool, world_size: int) -> str | None:
    """
    What every micro-batch of a stage must show at least, or None. Several processes wait for each other's gradients,
    and where visual parts alone train, a batch of text would have none.
    """
    chosen = STAGES[stage]
    if world_size == 1 and (chosen.lora or "language_model" in chosen.trains):
        return None
    needs_video = "temporal" in chosen.trains or world_size > 1
    return "video" if has_temporal and needs_video else "image"


def trained_parts(stage: str) -> list[str]:
    """Names of the modules below the model that a stage trains parts of, in weights files and in the model."""
    parts = {"vision": ["vision_model"], "language_model": ["language_model", "embedding_norm", "lm_head"]}
    parts |= {"temporal": ["vision_model", "abstractor"]}
    return [name for part in STAGES[stage].trains for name in parts.get(part, ["abstractor"])]


def lora_targets(model) -> str:
    """
    A pattern of the language model's layers for queries and values, or of those that make them together with keys.

    Raises:
        ValueError: if none has a name that is known; lists the names there are.
    """
    names = [name for name, _ in model.named_modules() if name.startswith("model.language_model.")]
    for ends in QUERIES_AND_VALUES:
        pattern = rf"model\.language_model\..*\.({ends})"
        if any(re.fullmatch(pattern, name) for name in names):
            return pattern
    layers = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    raise ValueError(
        f"No layers for queries and values were found in the language model `{model.config.text_config.model_type}` to "
        f"adapt by LoRA; its linear layers are {', '.join(sorted(layers))}. Choose `target_modules` in PEFT yourself."
    )


def module_table(model: nn.Module) -> list[dict]:
    """Rows of part, parameters, trainable parameters and types; LoRA has one of its own, PEFT's frozen copies none."""
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
    """The part that a parameter belongs to, by its name: "vision_model", "abstractor", "language_model", "LoRA", ..."""
    name = name.removeprefix(WRAPPED)
    return "LoRA" if LORA in name else name.removeprefix("model.").partition(".")[0]
