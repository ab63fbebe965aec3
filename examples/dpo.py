"""
Preference tuning by TRL's DPOTrainer: the miniature Owl learns to deny what an image does not show.

    pip install ".[train,trl]"
    python examples/dpo.py --output_dir build/dpo

Asked for the colour of a thing that is not there, it makes one up. In every pair that answer is the rejected one, and a
denial is chosen; pairs of your own need things that are there as well. Other things than those of training are asked
for before and after. All other options are those of `trl.DPOConfig`. LoRA adapts the language model alone.
"""

from dataclasses import dataclass
from typing import Any

import datasets
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser
from trl import DPOConfig, DPOTrainer

import transformers_owl
from transformers_owl.demo.caption import samples
from transformers_owl.inference import Chat
from transformers_owl.training import DPOCollator


TRAINED = ("dog", "cat", "horse", "cow", "pig", "monkey", "camel", "snake", "turtle", "apple", "banana", "car")
HELD_OUT = ("frog", "whale", "snail", "lemon", "bus", "guitar")
TOY = {
    "max_steps": 40, "learning_rate": 1e-3, "per_device_train_batch_size": 8, "bf16": False, "report_to": "none",
    "gradient_checkpointing": False, "loss_type": ["sigmoid", "sft"], "lr_scheduler_type": "constant",
}  # fmt: skip


@dataclass
class Arguments:
    model: str = transformers_owl.MINIATURE


def question(thing: str) -> str:
    return f"What colour is the {thing}?"


def denial(thing: str) -> str:
    return f"There is no {thing}."


def pairs(model, processor, things: tuple[str, ...]) -> datasets.Dataset:
    """Rows of `images`, `prompt`, `chosen` and `rejected`, TRL's form, of every image with every thing."""
    rows = []
    for image in samples():
        for thing in things:
            answer = Chat(model, processor).ask(question(thing), [image])
            rows.append({
                "images": [image],
                "prompt": [{"role": "user", "content": question(thing)}],
                "chosen": [{"role": "assistant", "content": denial(thing)}],
                "rejected": [{"role": "assistant", "content": answer}],
            })  # fmt: skip
    return datasets.Dataset.from_list(rows).cast_column("images", [datasets.Image()])


def denies(model, processor, image: str, thing: str) -> bool:
    return Chat(model, processor).ask(question(thing), [image]) == denial(thing)


def measure(trainer: DPOTrainer) -> dict[str, float]:
    """How far chosen answers are ahead of rejected ones, and the share of things that are denied."""
    margin = trainer.evaluate()["eval_rewards/margins"]
    model, processor = trainer.model, trainer.processing_class
    denied = [denies(model, processor, image, thing) for image in samples() for thing in HELD_OUT]
    found = {"margin": margin, "denied": sum(denied) / len(denied)}
    print(found)
    return found


def main(options: list[str] | None = None) -> tuple[dict[str, float], dict[str, float]]:
    """What was measured before and after."""
    parser: Any = HfArgumentParser([Arguments, DPOConfig])
    parser.set_defaults(**TOY)
    arguments, config = parser.parse_args_into_dataclasses(options)
    processor = AutoProcessor.from_pretrained(arguments.model)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype="bfloat16" if config.bf16 else "float32")
    trainer = DPOTrainer(
        model,
        args=config,
        train_dataset=pairs(model, processor, TRAINED),
        eval_dataset=pairs(model, processor, HELD_OUT),
        data_collator=DPOCollator(processor, max_length=config.max_length),
        processing_class=processor,
        peft_config=LoraConfig(r=8, lora_alpha=32, target_modules=r".*\.language_model\..*\.(q_proj|v_proj)"),
    )
    before = measure(trainer)
    trainer.train()
    trainer.save_model()
    return before, measure(trainer)


if __name__ == "__main__":
    main()
