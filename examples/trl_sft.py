"""
LoRA fine-tuning by TRL's SFTTrainer on a file of images and captions.

    pip install ".[train,trl]"
    python examples/trl_sft.py --model MAGAer13/mplug-owl-llama-7b --data examples/data/captions.jsonl \\
        --output_dir build/trl

All other options are those of `trl.SFTConfig`. LoRA adapts the language model alone.
"""

from dataclasses import dataclass
from pathlib import Path

import datasets
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser
from trl import SFTConfig, SFTTrainer

import transformers_owl  # noqa: F401  (registers the Auto classes)
from transformers_owl.training import SFTCollator


@dataclass
class Arguments:
    model: str
    data: str
    prompt: str = "Describe the picture."


def load_rows(data: str, prompt: str) -> datasets.Dataset:
    """Rows of `images` and `messages`, TRL's form, from JSON Lines of `file_name` and `text`."""

    def convert(row):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["text"]}]
        return {"images": [str(Path(data).parent / row["file_name"])], "messages": messages}

    rows = datasets.Dataset.from_json(data)
    return rows.map(convert, remove_columns=rows.column_names).cast_column("images", [datasets.Image()])


def main(options: list[str] | None = None) -> SFTTrainer:
    arguments, config = HfArgumentParser([Arguments, SFTConfig]).parse_args_into_dataclasses(options)
    processor = AutoProcessor.from_pretrained(arguments.model)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype="bfloat16" if config.bf16 else "float32")
    trainer = SFTTrainer(
        model,
        args=config,
        train_dataset=load_rows(arguments.data, arguments.prompt),
        data_collator=SFTCollator(processor, max_length=config.max_length),
        processing_class=processor,
        peft_config=LoraConfig(r=8, lora_alpha=32, target_modules=r".*\.language_model\..*\.(q_proj|v_proj)"),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
