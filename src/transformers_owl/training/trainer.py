"""The library's Trainer over a [`Mixture`]: complete checkpoints, an exact cursor in the data, and more logs."""

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import ProgressCallback, TrainerState

from ..journal import Journal
from .arguments import OwlArguments
from .epochs import Epochs, check_strategies, is_end
from .library import UNFINISHED, WholeCheckpoints, get_last_checkpoint
from .metrics import METRICS, check_metrics, write_answers
from .mixture import Mixture, MixtureLoader
from .output_folder import check_files, read_json, shorten
from .record import RECORD_FILE, check_same_run, record
from .run_card import write_card
from .sources import BROKEN_SHARD
from .stages import LAYERED, rated_part
from .throughput import TrainingFlops, gradient_norms
from .watching import ANSWERS_FILE, Progress


# Settings of the library that would have another effect than their name says, or none: what they may be, and why.
FIXED = {
    "label_smoothing_factor": ((0.0,), "the library would smooth unshifted labels, and teach repetition"),
    "label_names": ((None, ["labels"]), "the evaluation loss needs `labels`"),
    "use_liger_kernel": ((False,), "Liger has no kernels for this model"),
    "train_sampling_strategy": (("random",), "the mixture chooses the rows"),
    "dataloader_drop_last": ((False,), "all batches of the mixture are complete"),
    "dataloader_in_order": ((True,), "the next row of a worker follows from the order of batches"),
    "auto_find_batch_size": ((False,), "it cannot change the mixture's batches: set the batch size yourself"),
    "parallelism_config": ((None,), "every process reads its own rows, but the parts of one model need the same"),
}
FIXED_IN_ACCELERATOR = {
    "split_batches": ((False,), "a batch of the mixture is for one process"),
    "dispatch_batches": ((None, False), "every process reads its own rows"),
    "gradient_accumulation_kwargs": ((None,), "the mixture accumulates by `gradient_accumulation_steps`"),
}
SKIPPED_FILE = "skipped-{rank}.jsonl"


class OwlTrainer(WholeCheckpoints):
    """
    A `Trainer` whose runs may be killed at any time. A checkpoint is written aside and renamed once it is complete; it
    holds the cursor in the data, so that a resumed run gets the same batches as an uninterrupted one.

    Args:
        mixture ([`Mixture`]): The training data, with the batch size and accumulation of `args`.
        peak_tflops (`float`, *optional*): Peak TFLOP/s of one device; without it MFU is not logged.
        learning_rates (`dict[str, float]`, *optional*): Learning rates of "vision", "abstractor" and "language_model",
            also for their LoRA, where they differ from `args.learning_rate`.
        metrics (`Sequence[str]`, *optional*): Names in `METRICS`. At every evaluation the model generates the last
            answer of each sample, which the metrics compare with the sample's own.
        recipe ([`OwlArguments`], *optional*): The settings of model, data and stage. Checkpoints keep them, and a run
            with others cannot resume from them.
        **kwargs: As in `Trainer`. `args.max_steps` must be set.

    Besides the loss it logs, over all processes: tokens and images per second, MFU, the gradient norm of every module
    before clipping, and the number of skipped samples by reason.
    """

    model: nn.Module
    train_dataset: Mixture

    def __init__(
        self,
        model,
        args,
        mixture: Mixture,
        peak_tflops: float | None = None,
        recipe: OwlArguments | None = None,
        learning_rates: dict[str, float] | None = None,
        metrics: Sequence[str] = (),
        **kwargs,
    ):
        check_arguments(args, mixture)
        self.recipe = recipe
        self.record = record(args, mixture, recipe)
        check_metrics(metrics)
        self.metrics = list(metrics)
        self.learning_rates = learning_rates or {}
        self.record["settings"]["learning_rates"] = self.learning_rates
        if self.learning_rates and args.optim_target_modules is not None:
            raise ValueError("`learning_rates` and `optim_target_modules` exclude each other: leave one of them out.")
        # The mixture begins where its checkpoint says: there is nothing for the library to skip.
        args.ignore_data_skip = True
        args.remove_unused_columns = False  # of the evaluation's samples it would leave nothing
        super().__init__(model, args, train_dataset=mixture, **kwargs)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Progress())
        if mixture.steps_an_epoch is not None:
            self.add_callback(Epochs(mixture.steps_an_epoch))
        self.peak_tflops = peak_tflops
        self.skipped: Counter[str] = Counter()
        self.cursors: dict[int, dict[str, Any]] = {}
        self._flops = TrainingFlops(self.model)
        self._counted = torch.zeros(3, dtype=torch.float64)  # tokens, images, FLOPs since the last log
        self._began: float | None = None
        self._norms: dict[str, float] = {}
        self._rates: dict[str, float] = {}  # of the last step, by part

    def create_model_card(self, *args, **kwargs) -> None:
        """As in the library, but a run with a recipe gets the card of the recipe."""
        if self.recipe is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            write_card(self.recipe, self.args, self.state)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        output = self._output
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(str(output))
        if self.args.should_save:
            shutil.rmtree(output / UNFINISHED, ignore_errors=True)
        done = 0
        if resume_from_checkpoint:
            checkpoint = Path(str(resume_from_checkpoint))
            done = self._resume(checkpoint)
            if done >= self.args.max_steps:
                # All is done but for what comes after; the library would train for one more step.
                self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
                return self.load_trained(str(checkpoint))
        shorten(output / self._skipped_file, done)
        if self.args.should_save:
            shorten(output / ANSWERS_FILE, done)
            self._write_record(output)
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def get_train_dataloader(self) -> MixtureLoader:
        args = self.args
        return MixtureLoader(
            self.train_dataset, args.dataloader_num_workers, args.dataloader_pin_memory, args.dataloader_prefetch_factor
        )

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The library's optimizer, with its groups split by parts that have their own learning rate."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.learning_rates:
            parts = {parameter: rated_part(name) for name, parameter in (model or self.model).named_parameters()}
            divided = []
            for group in optimizer.param_groups:
                for part in LAYERED:
                    parameters = [parameter for parameter in group["params"] if parts[parameter] == part]
                    rate = self.learning_rates.get(part, group["lr"])
                    if parameters:
                        divided.append({**group, "params": parameters, "lr": rate, "part": part})
            optimizer.param_groups = divided
        return optimizer

    def get_batch_samples(self, *args, **kwargs):
        if self._began is None:
            self._began = time.perf_counter()
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        report = inputs.pop("report")
        self._note(report)
        lengths = report["lengths"]
        images = len(inputs.get("pixel_levels", ()))
        videos, frames = inputs["pixel_levels_videos"].shape[:2] if "pixel_levels_videos" in inputs else (0, 0)
        flops = self._flops(lengths, images, videos, frames)
        self._counted += torch.tensor([sum(lengths), images + videos * frames, flops], dtype=torch.float64)
        inputs = self.train_dataset.collator.with_pixels(send_to_device(inputs, self.args.device))
        if self.learning_rates:
            assert self.optimizer is not None
            self._rates = {group["part"]: float(group["lr"]) for group in self.optimizer.param_groups}
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._is_logged(self.state.global_step + 1) and self.accelerator.sync_gradients:
            self._norms = gradient_norms(self.model)
        return loss

    def _is_logged(self, step: int) -> bool:
        if self.args.logging_strategy == "epoch":
            assert self.train_dataset.steps_an_epoch is not None
            return is_end(step, self.train_dataset.steps_an_epoch) or step == self.args.max_steps
        return step % self.state.logging_steps == 0 or (self.args.logging_first_step and step == 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._began is not None:
            seconds = time.perf_counter() - self._began
            counted = self.accelerator.reduce(self._counted.to(self.args.device), "sum") / seconds
            logs["tokens_per_second"], logs["images_per_second"] = (
                round(counted[0].item()),
                round(counted[1].item(), 1),
            )
            if self.peak_tflops is not None:
                logs["mfu"] = counted[2].item() / (self.peak_tflops * 1e12 * self.args.world_size)
            logs |= {f"grad_norm_{part}": norm for part, norm in self._norms.items()}
            logs |= {f"skipped_{reason.replace(' ', '_')}": count for reason, count in self.skipped.items()}
            self._counted.zero_()
            self._began = None
        if "learning_rate" in logs and self.learning_rates:
            del logs["learning_rate"]  # of whichever group comes first
            logs |= {f"learning_rate_{part}": rate for part, rate in self._rates.items()}
        epoch = self.state.epoch
        if self.train_dataset.steps_an_epoch is None:
            self.state.epoch = None  # type: ignore[assignment]  # of tar shards nobody knows it
        super().log(logs, start_time)
        self.state.epoch = epoch

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )  # fmt: skip
        if not self.metrics:
            return output
        pairs = write_answers(self.model, dataloader.dataset, self.train_dataset.collator, self.args)
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{name}": METRICS[name](pairs) for name in self.metrics})
        return output

    def _note(self, report: dict[str, Any]) -> None:
        self.cursors[report["worker"]] = report["cursors"]
        if report["skipped"]:
            self.skipped.update(entry["reason"] for entry in report["skipped"])
            for entry in report["skipped"]:
                if entry["reason"] == BROKEN_SHARD:
                    logging.getLogger(__name__).warning(f"Skipped an unknown number of samples: {entry['error']}")
            with Journal(self._output / self._skipped_file) as journal:
                journal.append({"step": self.state.global_step + 1, **entry} for entry in report["skipped"])

    @property
    def _output(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def _skipped_file(self) -> str:
        return SKIPPED_FILE.format(rank=self.args.process_index)

    @property
    def _data_file(self) -> str:
        return f"data-{self.args.process_index}.json"

    def add_to_checkpoint(self, folder: Path) -> None:
        (folder / self._data_file).write_text(json.dumps(self._place(), indent=1))
        if self.args.should_save:
            self._write_record(folder)

    def _write_record(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD_FILE).write_text(json.dumps(self.record, indent=1), encoding="utf-8")

    def _place(self) -> dict[str, Any]:
        """The cursor of this process in the data."""
        return {
            "world_size": self.args.world_size,
            "workers": max(self.args.dataloader_num_workers, 1),
            "steps": self.state.global_step,
            "positions": self.cursors,
            "skipped": self.skipped,
        }

    def _resume(self, checkpoint: Path) -> int:
        """Checks that a checkpoint is of this run, sets its cursor in the data, and returns its step."""
        check_files(checkpoint)
        if not (checkpoint / self._data_file).exists() and not (checkpoint / RECORD_FILE).exists():
            raise ValueError(f"{checkpoint} has no {self._data_file}: resume from a checkpoint of OwlTrainer.")
        changed = check_same_run(checkpoint, self.record)
        if changed and self.args.should_log:
            logging.getLogger(__name__).warning(f"Settings changed since {checkpoint.name}: {'; '.join(changed)}.")
        place = read_json(checkpoint, self._data_file)
        now, then = ({name: run[name] for name in ("world_size", "workers")} for run in (self._place(), place))
        if now != then:
            raise ValueError(f"{checkpoint} was written by a run with {then}, but this one has {now}: make them equal.")
        if self.record["settings"]["save_only_model"] and place["steps"] < self.args.max_steps:
            raise ValueError(
                f"{checkpoint} holds only weights (`save_only_model`), from which no run can resume: start a new run "
                "with it as `model`."
            )
        self.cursors = {int(worker): cursors for worker, cursors in place["positions"].items()}
        self.skipped = Counter(place["skipped"])
        self.train_dataset.cursors = dict(self.cursors)
        self.train_dataset.first = place["steps"] * self.args.gradient_accumulation_steps
        self._find_best(checkpoint)
        return place["steps"]

    def _find_best(self, checkpoint: Path) -> None:
        """Finds the best checkpoint beside the others, also after their folder was moved."""
        path = read_json(checkpoint, "trainer_state.json")["best_model_checkpoint"]
        if path is None:
            return
        best = self._output / Path(path).name
        if self.args.load_best_model_at_end and not best.is_dir():
            raise ValueError(
                f"{checkpoint} names {best} as the best checkpoint, but it does not exist: restore it, or resume with "
                "`--load_best_model_at_end false`."
            )
        self.accelerator.wait_for_everyone()
        if str(best) != path and best.is_dir() and self.args.should_save:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            state.best_model_checkpoint = str(best)
            state.save_to_json(str(checkpoint / "trainer_state.json"))
        self.accelerator.wait_for_everyone()


def check_arguments(args, mixture: Mixture) -> None:
    """
    Raises:
        ValueError: for settings that conflict with the mixture, or would have no effect.
    """
    if args.n_gpu > 1:
        raise ValueError(
            f"This process sees {args.n_gpu} GPUs. Start one process per GPU: torchrun --nproc-per-node {args.n_gpu} "
            "--no-python transformers-owl train RECIPE; or choose one GPU by CUDA_VISIBLE_DEVICES."
        )
    if args.max_steps <= 0:
        raise ValueError("`max_steps` is needed: set it, for example to `mixture.steps(epochs)`.")
    for table, given in ((FIXED, vars(args)), (FIXED_IN_ACCELERATOR, vars(args.accelerator_config))):
        for name, (allowed, reason) in table.items():
            value = given.get(name, allowed[0])
            if value not in allowed:
                raise ValueError(f"`{name}` is {value!r}, but must be {allowed[0]!r}: {reason}.")
    if mixture.collator.packed_length is not None and args.include_num_input_tokens_seen == "non_padding":
        raise ValueError("`include_num_input_tokens_seen` is non_padding, but packed rows have no mask: set it to all.")
    check_strategies(args, mixture)
    given = (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.process_index, args.world_size)
    has = (mixture.batch_size, mixture.accumulation, mixture.rank, mixture.world_size)
    if given != has:
        raise ValueError(
            f"Batch size, accumulation, rank and number of processes are {has} in the mixture, but {given} in the "
            "arguments: make them equal."
        )
