"""The fence of training: what it leans on in other packages beyond their documented names."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import Seq2SeqTrainer, Trainer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from ..mplug_owl.modeling_mplug_owl import MplugOwlForConditionalGeneration
from .output_folder import SIZES_FILE, damaged, sizes


LEANS_ON = {
    "transformers.Trainer._save_checkpoint": "writes a checkpoint; no event comes before it, and the one after comes "
    "when older checkpoints are already gone",
    "transformers.Trainer._get_output_dir": "the folder that a checkpoint is written into",
    "transformers.Trainer._push_from_checkpoint": "uploads a checkpoint, before it is whole",
    "transformers.Trainer._load_from_checkpoint": "the weights of a run that has nothing left to train",
    "transformers.Trainer._load_optimizer_and_scheduler": "reads two files of a checkpoint; passes over missing ones",
    "transformers.Trainer._load_rng_state": "reads the random states; passes over a missing file",
    "transformers.Trainer._load_best_model": "the same, where the best ones are wanted",
    "transformers.Seq2SeqTrainer._pad_tensors_to_max_len": "wants an id for padding, which a processor does not name",
    "transformers.trainer_utils.get_last_checkpoint": "where a run goes on",
    "transformers.trainer_utils.rotate_checkpoints": "removes older checkpoints, but the best one",
    "transformers.modeling_layers.GradientCheckpointingLayer": "what a layer is, in all models of the library",
    "transformers.PreTrainedModel._keep_in_fp32_modules_strict": "parts that are loaded in float32, whatever the type",
    "webdataset.shardlists.expand_urls": "`{00000..00099}` stands for a hundred files",
    "webdataset.tariterators.group_by_keys": "files of a tar shard, by sample",
    "datasets: state.json": "a folder that `save_to_disk` wrote has such a file",
    "peft: names of parameters": "what stands before and in the names of a model with LoRA",
}

__all__ = [
    "FROZEN_COPY",
    "LORA",
    "TRAINED_COPY",
    "GradientCheckpointingLayer",
    "UnpaddedPredictions",
    "WholeCheckpoints",
    "expand_urls",
    "get_last_checkpoint",
    "group_by_keys",
    "is_saved_dataset",
]

UNFINISHED = "unfinished"
LORA = ".lora_"  # in the name of every parameter of LoRA
TRAINED_COPY = ".modules_to_save.default"  # in the names of what takes its place, and trains
FROZEN_COPY = "original_module"  # in the names of what a module of `modules_to_save` was before


class WholeCheckpoints(Trainer):
    """A Trainer that writes each checkpoint aside, and renames it once all processes have written their part."""

    is_saving = False

    def add_to_checkpoint(self, folder: Path) -> None:
        """Called in each process when the library's part of a checkpoint is in `folder`."""

    def _get_output_dir(self, trial) -> str:
        return str(Path(super()._get_output_dir(trial), UNFINISHED if self.is_saving else ""))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_saving:
            if self.is_world_process_zero():
                for code in Path(checkpoint_folder).glob("*.py"):  # the library copies weights and settings alone
                    shutil.copy(code, str(self.args.output_dir))
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model, trial) -> None:
        """As in the library, but aside; renamed, rotated and pushed once it is complete."""
        final = Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        aside = final.parent / UNFINISHED / final.name
        self.is_saving = True
        super()._save_checkpoint(model, trial)
        self.is_saving = False
        self.add_to_checkpoint(aside)
        if self.state.best_model_checkpoint == str(aside):
            self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(aside / "trainer_state.json"))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (aside / SIZES_FILE).write_text(json.dumps(sizes(aside), indent=1))
            if final.exists():
                final.rename(aside.parent / f"old-{final.name}")
            aside.rename(final)
            shutil.rmtree(aside.parent)
            rotate_checkpoints(
                str(final.parent), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _whole(self, load: Callable, checkpoint: str, *args, **kwargs):
        try:
            return load(checkpoint, *args, **kwargs)
        except (
            OSError,
            EOFError,
            KeyError,
            ValueError,
            RuntimeError,
            pickle.UnpicklingError,
            SafetensorError,
        ) as error:
            raise ValueError(f"{damaged(Path(checkpoint), 'a file')} The library says: {error}") from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        return self._whole(super()._load_from_checkpoint, resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint):
        return self._whole(super()._load_optimizer_and_scheduler, checkpoint) if checkpoint else None

    def _load_rng_state(self, checkpoint):
        return self._whole(super()._load_rng_state, checkpoint) if checkpoint else None

    def load_trained(self, checkpoint: str) -> None:
        """Loads the weights of a finished run: the best ones with `load_best_model_at_end`, else the last."""
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None and Path(best).is_dir():
            self._load_best_model()
        else:
            self._load_from_checkpoint(checkpoint)


class UnpaddedPredictions(Seq2SeqTrainer):
    """A Seq2SeqTrainer with predictions of the generated lengths, padded with -100 over several batches."""

    def _pad_tensors_to_max_len(self, tensor, max_length):
        return tensor


@contextmanager
def kept_in_float32(parts: list[str]) -> Iterator[None]:
    """Within it these parts of a model are loaded in float32, as in their file."""
    before = MplugOwlForConditionalGeneration._keep_in_fp32_modules_strict
    MplugOwlForConditionalGeneration._keep_in_fp32_modules_strict = parts
    try:
        yield
    finally:
        MplugOwlForConditionalGeneration._keep_in_fp32_modules_strict = before


def expand_urls(pattern: str) -> list[str]:
    from webdataset.shardlists import expand_urls

    return expand_urls(pattern)


def group_by_keys(files):
    """Samples `{"__key__", "__url__", SUFFIX: data, ...}` of files `{"fname", "data", "__url__"}`."""
    from webdataset.tariterators import group_by_keys

    return group_by_keys(files)


def is_saved_dataset(path: Any) -> bool:
    """Whether a folder was written by `Dataset.save_to_disk`."""
    return (Path(path) / "state.json").exists()
