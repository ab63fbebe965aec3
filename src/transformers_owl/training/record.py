"""The record of a run in its checkpoints, which a resumed run must match."""

import json
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from .arguments import OwlArguments
from .mixture import Mixture
from .output_folder import read_json


RECORD_FILE = "run.json"
# Settings that may change while a run lasts: what it shows, keeps and evaluates, and how fast it is. `max_steps` says
# what the epochs do, and the accumulation what the global batch size does.
FREE = re.compile(
    r"(logging|log|save|eval|hub|trackio|do|include|ddp|torch_compile|gradient_checkpointing|activation_checkpointing)_.+"
    r"|gradient_checkpointing|activation_checkpointing|torch_compile|output_dir|num_train_epochs|disable_tqdm|report_to"
    r"|run_name|project|per_device_eval_batch_size|prediction_loss_only|batch_eval_metrics|enable_jit_checkpoint"
    r"|push_to_hub|load_best_model_at_end|metric_for_best_model|greater_is_better|restore_callback_states_from_checkpoint"
    r"|(bf16|fp16)_full_eval|use_cpu|use_cache|dataloader_.+|skip_memory_metrics|resume_from_checkpoint|local_rank|debug"
    r"|ignore_data_skip|remove_unused_columns|torch_empty_cache_steps"
    r"|global_batch_size|on_error|max_skipped|metrics|attn_implementation|compile_layers|watch|watch_prompt|peak_tflops"
)
STEADY = ("constant", "constant_with_warmup")  # schedules that do not depend on the number of steps
UNSAID = {"resume_from_checkpoint", "ignore_data_skip", "local_rank"}
DERIVED = ("augmentation", "parts", "policy", "rates")  # what a recipe computes from its settings
PACKAGES = ("transformers", "torch", "peft", "accelerate")


def record(args: TrainingArguments, mixture: Mixture, recipe: OwlArguments | None) -> dict[str, Any]:
    """
    The record as JSON keeps it: settings by name, sizes in bytes and modification times of data and model files, and
    versions of packages.
    """
    collator = mixture.collator
    settings = {
        **args.to_dict(),
        "groups": [[name, group.weight] for name, group in mixture.groups.items()],
        "data_seed": mixture.seed,
        "augmentation": mixture.augmentation,
        "max_length": collator.max_length,
        "packed_length": collator.packed_length,
        "num_frames": collator.num_frames,
    }
    paths = [path for group in mixture.groups.values() for path in group.data.paths()]
    if recipe is not None:
        settings |= {
            name: value
            for name, value in vars(recipe).items()
            if name not in ("augmentation", "parts", "policy", "rates")
        }
        paths += [str(path) for path in sorted(Path(recipe.model).glob("*")) if path.suffix in (".safetensors", ".bin")]
    files = {path: [state.st_size, state.st_mtime_ns] for path in paths if (state := _state(path)) is not None}
    versions = {name: version(name) for name in PACKAGES if find_spec(name)}
    return json.loads(json.dumps({"settings": settings, "files": files, "versions": versions}, default=str))


def _state(path: str):
    return Path(path).stat() if Path(path).is_file() else None


def check_same_run(checkpoint: Path, now: dict[str, Any]) -> list[str]:
    """
    Compares a run with the record in a checkpoint.

    Args:
        checkpoint (`Path`): Folder of the checkpoint.
        now (`dict`): The record of this run.

    Returns:
        `list[str]`: Descriptions of the allowed changes.

    Raises:
        ValueError: for changes that would give other weights, with both values.
    """
    then = read_json(checkpoint, RECORD_FILE)
    changed = {
        name: f"{name}: {then['settings'][name]!r}, now {value!r}"
        for name, value in now["settings"].items()
        if name in then["settings"] and then["settings"][name] != value
    }
    free = {name for name in changed if FREE.fullmatch(name)}
    if now["settings"]["lr_scheduler_type"] in STEADY:
        free |= {"max_steps"} & set(changed)
    refused = [text for name, text in changed.items() if name not in free]
    for path in sorted(then["files"].keys() | now["files"].keys()):
        if then["files"].get(path) != now["files"].get(path):
            refused.append(f"{path}: {_described(then, path)}, now {_described(now, path)}")
    if refused:
        raise ValueError(
            f"This run cannot resume from {checkpoint}, since changes would give other weights: "
            f"{'; '.join(refused)}. Undo them, or start a new run: with another `output_dir`, or here with "
            "`--resume_from_checkpoint false`."
        )
    said = [changed[name] for name in sorted(free - UNSAID)]
    said += [
        f"{name} {then['versions'].get(name)}, now {number}"
        for name, number in now["versions"].items()
        if then["versions"].get(name) != number
    ]
    return said


def _described(run: dict[str, Any], path: str) -> str:
    if path not in run["files"]:
        return "not used"
    size, time = run["files"][path]
    return f"{size} bytes of {time / 1e9:.0f} s"
