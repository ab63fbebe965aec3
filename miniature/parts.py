"""What stage 1 starts from: a tokenizer, a language model trained on text, and a vision model trained on words."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from drawings import things
from scenes import DYES, GROUNDS, LAYOUTS, MOST, SIZE, WORDS, World, draw
from talk import KINDS
from text import documents
from tokenizers import AddedToken
from torch import nn
from torch.utils.data import IterableDataset, default_collate, get_worker_info
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from transformers_owl import MplugOwlImageProcessor
from transformers_owl.mplug_owl.processing_mplug_owl import SYSTEM_SENTENCE
from transformers_owl.mplug_owl.tokenization_mplug_owl import prepare_tokenizer


VOCABULARY = 2048
LINE_END = "|"
IGNORED = -100


def train_tokenizer(world: World, folder: Path) -> None:
    """A SentencePiece model with LLaMA's settings, and one token more: the sentence that begins every prompt."""
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch, "text.txt")
        some = itertools.islice(documents(world, 0), 40_000)
        lines = (" ".join(f"{given} {learned}" for given, learned in document) for document in some)
        # A line's end is a byte for LLaMA. Here a mark stands for it: what follows is no beginning of a text.
        text.write_text("\n".join(line.replace("\n", LINE_END) for line in lines), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(Path(scratch, "tokenizer")), model_type="bpe", vocab_size=VOCABULARY,
            byte_fallback=True, split_digits=True, character_coverage=1.0, normalization_rule_name="identity",
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, remove_extra_whitespaces=False, minloglevel=2,
        )  # fmt: skip
        Path(scratch, "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": false}')
        tokenizer = LlamaTokenizer.from_pretrained(scratch)
    tokenizer.add_tokens([AddedToken(SYSTEM_SENTENCE, normalized=False)])
    prepare_tokenizer(tokenizer).save_pretrained(folder)


class Text(IterableDataset):
    """Documents as ids, with labels where there is something to learn."""

    def __init__(self, world: World, tokenizer, seed: int):
        self.world, self.tokenizer, self.seed = world, tokenizer, seed

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        for document in documents(self.world, self.seed):
            ids, labels = [self.tokenizer.bos_token_id], [IGNORED]
            for given, learned in document:
                before = self.tokenizer(given, add_special_tokens=False)["input_ids"] if given else []
                after = self.tokenizer(learned, add_special_tokens=False)["input_ids"] if learned else []
                ids += before + after
                labels += [IGNORED] * len(before) + after
            yield {"input_ids": [*ids, self.tokenizer.eos_token_id], "labels": [*labels, self.tokenizer.eos_token_id]}


def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows of one length; what follows a document has no labels, and no position before it sees it."""
    length = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (length - len(row["input_ids"])) for row in rows]
    labels = [row["labels"] + [IGNORED] * (length - len(row["labels"])) for row in rows]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


class Seen(IterableDataset):
    """Pictures with the labels of what they show."""

    def __init__(self, world: World, processor: MplugOwlImageProcessor, labels: dict[str, int], seed: int):
        self.world, self.processor, self.labels, self.seed = world, processor, labels, seed

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in itertools.count(first, step):
            scene = self.world.scene(np.random.default_rng([self.seed, number]))
            picture = np.asarray(draw(scene, self.world.drawings, self.processor.size["height"]))
            found = torch.zeros(len(self.labels))
            found[[self.labels[fact] for fact in scene.facts()]] = 1
            yield {"picture": torch.from_numpy(picture.copy()), "labels": found}


class WordPredictor(nn.Module):
    """A CLIP vision model that says which labels a picture has: the stand-in for training with captions' words."""

    def __init__(self, config: CLIPVisionConfig, processor: MplugOwlImageProcessor):
        super().__init__()
        self.vision = CLIPVisionModel(config)
        self.vision.set_attn_implementation("eager")
        self.head = nn.Linear(2 * config.hidden_size, len(labels()))
        nn.init.constant_(self.head.bias, -4.0)
        self.register_buffer("mean", 255 * torch.tensor(processor.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(processor.image_std).view(3, 1, 1), persistent=False)

    def forward(self, picture: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels = (picture.permute(0, 3, 1, 2) - self.get_buffer("mean")) / self.get_buffer("std")
        seen = self.vision(pixels)
        patches = seen.last_hidden_state[:, 1:]
        logits = self.head(torch.cat([seen.pooler_output, patches.mean(1)], 1))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(labels)
        return {"loss": loss, "logits": logits}


def labels() -> dict[str, int]:
    """A number for every label that a scene may have."""
    colours = {*DYES, "undyed"}
    names = [thing.name for thing in things()]
    seen = [*(f"scene {kind}" for kind in LAYOUTS), *(f"ground {ground}" for ground in GROUNDS)]
    seen += [f"count {count}" for count in range(1, MOST + 1)]
    seen += [f"{place} {what}" for place in ("left", "right", "all") for what in (*names, *KINDS, *sorted(colours))]
    seen += [*names, *KINDS]
    seen += [f"digit {place} {digit}" for place in range(2) for digit in range(10)]
    seen += sorted({f"letter {place} {letter}" for word in WORDS for place, letter in enumerate(word)})
    seen += [f"says {text}" for text in (*map(str, range(100)), *WORDS)]
    return {label: number for number, label in enumerate(seen)}


def settings(folder: Path, **values) -> TrainingArguments:
    """Settings that both parts share."""
    return TrainingArguments(
        output_dir=str(folder), lr_scheduler_type="cosine", adam_beta2=0.98, max_grad_norm=1.0, bf16=True, use_cpu=True,
        logging_steps=20, save_steps=200, save_total_limit=1, report_to="none", remove_unused_columns=False,
        dataloader_num_workers=1, disable_tqdm=None, seed=0, **values,
    )  # fmt: skip


def fit(model: nn.Module, data: IterableDataset, args: TrainingArguments, collate: Callable = default_collate) -> None:
    """Trains to the end, going on from the last checkpoint if there is one."""
    trainer = Trainer(model, args, train_dataset=data, data_collator=collate)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir))


def train_language_model(world: World, tokenizer_folder: Path, scratch: Path, folder: Path, steps: int) -> None:
    """A LLaMA that has read documents; stage 1 freezes it."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    args = settings(
        scratch, max_steps=steps, per_device_train_batch_size=32, learning_rate=1e-3, warmup_steps=50, weight_decay=0.05
    )
    fit(model, Text(world, tokenizer, seed=1), args, pad)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_vision(world: World, scratch: Path, folder: Path, steps: int) -> None:
    """A CLIP vision model that knows what scenes show."""
    set_seed(0)
    config = CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, image_size=SIZE,
        patch_size=16, hidden_act="quick_gelu",
    )  # fmt: skip
    processor = MplugOwlImageProcessor(size={"height": SIZE, "width": SIZE})
    model = WordPredictor(config, processor)
    args = settings(
        scratch, max_steps=steps, per_device_train_batch_size=128, learning_rate=1e-3, warmup_steps=100,
        weight_decay=0.05,
    )  # fmt: skip
    fit(model, Seen(world, processor, labels(), seed=2), args)
    model.vision.save_pretrained(folder)
    processor.save_pretrained(folder)
