"""
Reinforcement learning by TRL's GRPOTrainer: the miniature Owl learns to name only colours that an image has.

    pip install ".[train,trl]"
    python examples/grpo.py --output_dir build/grpo

Asked for the colour of a thing that is not there, it makes one up. The reward is 1 for the colour of the ground, which
is there, and 0 for anything else. Other things than those of training are asked for before and after. All other options
are those of `trl.GRPOConfig`. LoRA adapts the language model alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser
from trl import GRPOConfig, GRPOTrainer

import transformers_owl
from transformers_owl.demo.caption import samples


GROUNDS = {
    "castle-and-octopus": "green", "elephant": "pink", "helicopters": "red", "number": "pink", "sunflower": "black",
}  # fmt: skip
TRAINED = ("dog", "cat", "horse", "cow", "pig", "monkey", "camel", "snake", "turtle", "apple", "banana", "car")
HELD_OUT = ("frog", "whale", "snail", "lemon", "bus", "guitar")
TOY = {
    "max_steps": 15, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "per_device_train_batch_size": 32,
    "num_generations": 8, "per_device_eval_batch_size": 60, "num_generations_eval": 4, "max_completion_length": 8,
    "bf16": False, "gradient_checkpointing": False, "logging_steps": 5, "report_to": "none",
}  # fmt: skip


@dataclass
class Arguments:
    model: str = transformers_owl.MINIATURE


def rows(things: tuple[str, ...]) -> datasets.Dataset:
    """Rows of `images` and `prompt`, TRL's form, of every image with every thing, and the colour of the `ground`."""
    found = [
        {
            "images": [image],
            "prompt": [{"role": "user", "content": f"What colour is the {thing}?"}],
            "ground": GROUNDS[Path(image).stem],
        }
        for image in samples()
        for thing in things
    ]
    return datasets.Dataset.from_list(found).cast_column("images", [datasets.Image()])


def is_there(completions: list[list[dict]], ground: list[str], **kwargs) -> list[float]:
    """The reward of each answer."""
    return [float(answer["content"].strip() == colour) for (answer,), colour in zip(completions, ground, strict=True)]


def fit(config: GRPOConfig, processor) -> None:
    """TRL keeps image placeholders out of answers by itself, and not those of videos."""
    config.generation_kwargs = {"suppress_tokens": [processor.image_token_id, processor.video_token_id]}


def measure(trainer: GRPOTrainer) -> float:
    """The mean reward of sampled answers."""
    found = trainer.evaluate()["eval_reward"]
    print(f"mean reward: {found:.2f}")
    return found


def main(options: list[str] | None = None) -> tuple[float, float]:
    """The mean reward before and after."""
    parser: Any = HfArgumentParser([Arguments, GRPOConfig])
    parser.set_defaults(**TOY)
    arguments, config = parser.parse_args_into_dataclasses(options)
    processor = AutoProcessor.from_pretrained(arguments.model)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype="bfloat16" if config.bf16 else "float32")
    fit(config, processor)
    trainer = GRPOTrainer(
        model,
        is_there,
        args=config,
        train_dataset=rows(TRAINED),
        eval_dataset=rows(HELD_OUT),
        processing_class=processor,
        peft_config=LoraConfig(r=8, lora_alpha=32, target_modules=r".*\.language_model\..*\.(q_proj|v_proj)"),
    )
    before = measure(trainer)
    trainer.train()
    trainer.save_model()
    return before, measure(trainer)


if __name__ == "__main__":
    main()
