"""The command `train`: read the recipe, load the model, prepare the stage, train, save."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    TrainingArguments,
    set_seed,
)

from ..loading import choose_template
from ..mplug_owl.configuration_mplug_owl import check_max_crops
from ..progress import track
from .arguments import OwlArguments, parse_recipe
from .collator import ConversationCollator
from .compiling import compile_layers
from .library import get_last_checkpoint, kept_in_float32
from .mixture import Mixture, NoAnswerLeftError, RowGroup, encode, open_visuals
from .output_folder import set_aside
from .packing import check_packing
from .sources import BadSampleError
from .stages import blank_visual, prepare_stage, trained_parts
from .throughput import peak_tflops
from .trainer import OwlTrainer
from .watching import FixedImages, LossCurves, print_table


def train(recipe: str | Path | None, options: list[str]) -> OwlTrainer:
    """
    Trains by a recipe. An interrupted run resumes from its last checkpoint in `output_dir`.

    Args:
        recipe (`str` or `Path`, *optional*): A YAML file as in `configs/`.
        options (`list[str]`): `--name value ...`, which override the recipe's values.

    Returns:
        [`OwlTrainer`]: The Trainer. The model, or its adapter, and the processor are saved in `output_dir`.

    Raises:
        ValueError: for an invalid recipe or data.
    """
    owl, args, processor, mixture, samples, model, console = prepare(recipe, options)
    trainer = OwlTrainer(
        model,
        args,
        mixture,
        recipe=owl,
        learning_rates=owl.rates,
        metrics=owl.metrics,
        peak_tflops=owl.peak_tflops or peak_tflops(args.device, compute_dtype(args)),
        eval_dataset=samples,
        data_collator=mixture.collator,
        processing_class=processor,
        callbacks=[LossCurves(), *([FixedImages(processor, owl.watch, owl.watch_prompt)] if owl.watch else [])],
    )
    last = where_to_go_on(args, trainer)
    if last:
        console.print(f"Resuming from {last}", soft_wrap=True)
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    console.print(f"Saved to {args.output_dir}", soft_wrap=True)
    return trainer


class Prepared(NamedTuple):
    """A recipe's settings, with its model loaded and its data opened."""

    owl: OwlArguments
    args: TrainingArguments
    processor: Any
    mixture: Mixture
    samples: list[dict] | None
    model: Any
    console: Console


def prepare(recipe: str | Path | None, options: list[str], console: Console | None = None) -> Prepared:
    """Reads a recipe, opens its data, loads its model for the stage, and prints the trained parts."""
    owl, args = parse_recipe(recipe, options)
    console = console or Console(stderr=True, quiet=not args.should_log)
    set_seed(args.seed)
    processor: Any = AutoProcessor.from_pretrained(owl.model)
    if owl.chat_template is not None:
        choose_template(processor, owl.chat_template)
    config = None if owl.max_crops is None else choose_max_crops(processor, owl)
    mixture = make_mixture(owl, args, processor)
    samples = evaluation_samples(owl, mixture.collator, console)  # before the model: it says sooner what is wrong
    model = load_model(owl, args, config)
    if owl.packing:
        check_packing(model)
    print_table(model, console, args.learning_rate, owl.rates)
    mixture.collator.always = blank_visual(owl.parts, model.config.sees_videos, args.world_size)
    return Prepared(owl, args, processor, mixture, samples, model, console)


def where_to_go_on(args: TrainingArguments, trainer: OwlTrainer) -> str | None:
    """
    The checkpoint to resume from: by default the last one in `output_dir` if there is one; with
    `resume_from_checkpoint` true it must exist, with false the files of an earlier run are moved aside.
    """
    trainer.accelerator.wait_for_everyone()  # the first process makes the folder
    wish = str(args.resume_from_checkpoint or "").lower() if args.resume_from_checkpoint is not False else "false"
    if wish not in ("", "true", "false"):
        return args.resume_from_checkpoint
    if wish == "false":
        if args.should_save:
            set_aside(Path(str(args.output_dir)))
        trainer.accelerator.wait_for_everyone()
        return None
    last = get_last_checkpoint(args.output_dir)
    if wish == "true" and last is None:
        raise ValueError(f"`resume_from_checkpoint` is true, but {args.output_dir} has no checkpoint: leave it out.")
    return last


def compute_dtype(args: TrainingArguments) -> torch.dtype:
    """The dtype of matrix products."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def choose_max_crops(processor, owl: OwlArguments) -> PreTrainedConfig:
    """
    Sets `owl.max_crops` in a processor, and returns the model's configuration with embeddings for that many cells.

    Raises:
        ValueError: if the model would need cell embeddings that this run does not train, or that the base of its
            adapter would lack.
    """
    config: Any = AutoConfig.from_pretrained(owl.model)
    abstractor, wanted = config.visual_abstractor_config, owl.max_crops
    assert wanted is not None
    check_max_crops(wanted)
    processor.image_processor.max_crops = wanted
    if wanted <= abstractor.max_crops:
        return config
    if abstractor.max_crops > 1:
        raise ValueError(
            f"`max_crops` is {wanted}, but {owl.model} has embeddings for at most {abstractor.max_crops} cells: set "
            f"it from 1 to {abstractor.max_crops}."
        )
    if "abstractor" not in owl.parts.trains or owl.parts.lora:
        raise ValueError(
            f"`max_crops` is {wanted}, but {owl.model} has no cell embeddings, and stage {owl.stage!r} cannot add "
            "them: it must train the whole abstractor, without LoRA. Train stage 1 (`pretrain`) with `max_crops`, or "
            "build the model with `transformers-owl build --max-crops`."
        )
    abstractor.max_crops = wanted
    return config


def load_model(owl: OwlArguments, args: TrainingArguments, config: PreTrainedConfig | None = None):
    """Loads the model for its stage, with frozen weights in the dtype of the computation, trained ones in float32."""
    dtype = compute_dtype(args)
    quantization = {
        "none": None,
        "4bit": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
    }[owl.quantize]
    # An adapter keeps this address of its base, and is read from other folders.
    address = str(Path(owl.model).resolve()) if Path(owl.model).is_dir() else owl.model
    with kept_in_float32(trained_parts(owl.parts)):
        model = AutoModelForImageTextToText.from_pretrained(
            address,
            config=config,
            dtype=dtype,
            attn_implementation=owl.attn_implementation,
            quantization_config=quantization,
        )
    model = prepare_stage(model, owl.parts, owl.lora_r, owl.lora_alpha, owl.lora_dropout)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif any(part in name.split(".") for part in trained_parts(owl.parts)):
            parameter.data = parameter.data.to(dtype)
    return compile_layers(model) if owl.compile_layers else model


def make_mixture(owl: OwlArguments, args: TrainingArguments, processor) -> Mixture:
    """The training data of the recipe; sets `args.max_steps` from the epochs if it is not given."""
    # Flash attention tells packed conversations apart in batches of one row, at no cost for its length.
    one_row = "flash" in (owl.attn_implementation or "")
    packed_length = None if not owl.packing else sys.maxsize if one_row else owl.max_length
    mixture = Mixture(
        owl.groups(),
        ConversationCollator(processor, owl.max_length, num_frames=owl.num_frames, packed_length=packed_length),
        batch_size=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        augmentation=owl.augmentation,
        policy=owl.policy,
        rank=args.process_index,
        world_size=args.world_size,
    )
    if args.max_steps <= 0:
        args.max_steps = mixture.steps(args.num_train_epochs)
    return mixture


def evaluation_samples(owl: OwlArguments, collator: ConversationCollator, console: Console) -> list[dict] | None:
    """
    The samples of the evaluation data, each read once in advance; unusable ones stop the run or are skipped by the
    policy of training.
    """
    samples: list[dict] = []
    skipped = 0
    for name, group in owl.groups("eval_data").items():
        if not isinstance(group.data, RowGroup):
            raise ValueError(f"The evaluation data {name!r} are tar shards, but must be files of rows.")
        for number in track(range(len(group.data)), f"reading {name}", len(group.data), "rows", console):
            try:
                sample = group.data[number]
                encode(open_visuals(sample, collator), sample["source"], collator)
                samples.append(sample)
            except BadSampleError as error:
                if owl.on_error == "stop" and not isinstance(error, NoAnswerLeftError):
                    raise
                skipped += 1
                console.print(f"Skipped in the evaluation: {error}")
                owl.policy.check(len(samples) + skipped, skipped, error)
    return samples or None
