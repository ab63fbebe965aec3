"""What stage 1 starts from: a tokenizer, a language model trained on text, and a vision model trained on words."""

import functools
import itertools
import string
import tempfile
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
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

from .drawings import things
from .induction import begin_with_induction_heads
from .scenes import DYED, DYES, GROUNDS, LAYOUTS, MOST, SIZE, WORDS, Scene, World, draw
from .talk import KINDS
from .text import documents


VOCABULARY = 2048
ROWS = 32  # of a step of the language model
PATCH = 16
GPU_WORKERS = 12  # processes that draw for a GPU; they share the 24 shards of captions evenly
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

    def __init__(self, world: World, tokenizer, seed: tuple[int, ...]):
        self.world, self.tokenizer, self.seed = world, tokenizer, seed

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        """Rows of a step are of about one length: four steps' are sorted together."""
        worker = get_worker_info()
        seed = (*self.seed, 0 if worker is None else worker.id)
        random, rows = np.random.default_rng(seed), self.rows(seed)
        while True:
            some = sorted(itertools.islice(rows, 4 * ROWS), key=lambda row: len(row["input_ids"]))
            for step in random.permutation(4):
                yield from some[step * ROWS : (step + 1) * ROWS]

    def rows(self, seed: tuple[int, ...]) -> Iterator[dict[str, list[int]]]:
        for document in documents(self.world, seed):
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


@dataclass(frozen=True)
class Lesson:
    """
    What the vision model is shown for some of its steps.

    Args:
        name (`str`): Of its folder of checkpoints.
        kind (`str`, *optional*): Of the scenes; by default all kinds that a world has.
        edge (`int`): Of the images in pixels.
        dyed (`float`): Share of things in another colour than their own.
        rows (`int`): Images a step.
        share (`float`): Of all steps.
        schedule (`str`): Of the learning rate.
    """

    name: str
    kind: str | None
    edge: int
    dyed: float
    rows: int
    share: float
    schedule: str


# A close-up has a quarter of a scene's patches, and lies at any place of it.
LESSONS = (
    Lesson("close", "close", SIZE // 2, 0.0, 256, 0.14, "constant_with_warmup"),
    Lesson("dyed", "close", SIZE // 2, DYED, 256, 0.37, "constant_with_warmup"),
    Lesson("scenes", None, SIZE, DYED, 96, 0.49, "cosine"),
)
NAMES, COLOURS = tuple(thing.name for thing in things()), ("", *DYES)
SIGNS = ("", *string.digits, *string.ascii_lowercase)
# What there is to be said of an image, and of a patch that shows a thing.
OF_IMAGE: dict[str, tuple] = {
    "scene": tuple(LAYOUTS), "ground": tuple(GROUNDS), "count": tuple(range(1, MOST + 1)), "name": NAMES,
    "colour": COLOURS, "left": NAMES, "right": NAMES, "left colour": COLOURS, "right colour": COLOURS,
    **{f"sign {place}": SIGNS for place in range(max(map(len, WORDS)))},
}  # fmt: skip
SIDES = ("left", "right")
PLACES = tuple(range(max(map(len, WORDS))))
OF_PATCH: dict[str, tuple] = {
    "name": NAMES, "kind": KINDS, "colour": COLOURS, "side": SIDES, "sign": SIGNS, "place": PLACES,
}  # fmt: skip


def words_of_image(scene: Scene) -> dict[str, Any]:
    """What a caption would say, by the question that it answers."""
    words: dict[str, Any] = {"scene": scene.kind, "ground": scene.ground}
    if scene.kind in ("one", "many", "close") and scene.items:
        words |= {"name": scene.left.thing.name, "colour": scene.left.dye, "count": len(scene.items)}
    if scene.kind == "two":
        for side, item in zip(SIDES, (scene.left, scene.right), strict=True):
            words |= {side: item.thing.name, f"{side} colour": item.dye}
    if scene.writing:
        signs = [question for question in OF_IMAGE if question.startswith("sign")]
        words |= dict(itertools.zip_longest(signs, scene.writing, fillvalue=""))
    return words


def words_of_patch(scene: Scene, x: float, y: float, column: int, edge: int = SIZE) -> dict[str, Any]:
    """
    What the patch around a point shows. The abstractor has no positions of its own: it tells left from right, and the
    order of signs, by what the patches say of them.
    """
    item = scene.at(x, y)
    if item is not None:
        side = SIDES[2 * column // (SIZE // PATCH)]
        return {"name": item.thing.name, "kind": item.thing.kind, "colour": item.dye, "side": side}
    place = scene.sign_at(x, y, edge) if scene.writing else None
    if place is None:
        return {}
    words: dict[str, Any] = {"sign": scene.writing[place]}
    return words if scene.kind == "close" else {**words, "place": place}


def numbers(questions: dict[str, tuple], words: dict[str, Any]) -> list[int]:
    return [said.index(words[name]) if name in words else IGNORED for name, said in questions.items()]


class Seen(IterableDataset):
    """
    Images with the words of what they show: `image` of shape `(edge, edge, 3)`, `places` of its patches among the
    vision model's positions, `of_image` and `of_patches`, numbers of words.
    """

    def __init__(self, world: World, lesson: Lesson, seed: tuple[int, ...]):
        self.world, self.lesson, self.seed = replace(world, dyed=lesson.dyed), lesson, seed

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        side, sides = self.lesson.edge // PATCH, SIZE // PATCH
        middles = [(place + 0.5) / side for place in range(side)]
        for number in itertools.count(first, step):
            random = np.random.default_rng([*self.seed, number])
            scene = self.world.scene(random, self.lesson.kind)
            row, column = random.integers(sides - side + 1, size=2)
            columns = np.arange(column, column + side)
            places = np.arange(row, row + side)[:, None] * sides + columns
            patches = [numbers(OF_PATCH, words_of_patch(scene, x, y, at, self.lesson.edge))
                       for y in middles for at, x in zip(columns, middles, strict=True)]  # fmt: skip
            yield {
                "image": np.array(draw(scene, self.world.drawings, self.lesson.edge)),
                "places": 1 + places.ravel(),
                "of_image": np.array(numbers(OF_IMAGE, words_of_image(scene))),
                "of_patches": np.array(patches),
            }


class WordPredictor(nn.Module):
    """A vision model that says which words go with an image and its patches."""

    def __init__(self, vision: Any, processor: MplugOwlImageProcessor, of_patch: dict[str, tuple] = OF_PATCH):
        super().__init__()
        self.vision = vision
        self.vision.set_attn_implementation("eager")
        width = vision.config.hidden_size
        self.of_image = nn.ModuleList(nn.Linear(2 * width, len(said)) for said in OF_IMAGE.values())
        self.of_patch = nn.ModuleList(nn.Linear(width, len(said)) for said in of_patch.values())
        self.register_buffer("mean", 255 * torch.tensor(processor.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(processor.image_std).view(3, 1, 1), persistent=False)

    def pixels(self, image: torch.Tensor) -> torch.Tensor:
        """`(..., edge, edge, 3)` as the vision model takes them."""
        return (image.movedim(-1, -3) - self.get_buffer("mean")) / self.get_buffer("std")

    def predict(
        self, patches: torch.Tensor, summary: torch.Tensor, of_image: torch.Tensor, of_patches: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A loss for each question, and the logits of its words."""
        said = [(head(summary), of_image[:, place]) for place, head in enumerate(self.of_image)]
        said += [(head(patches).flatten(0, 1), of_patches[..., place].flatten())
                 for place, head in enumerate(self.of_patch)]  # fmt: skip
        # A mean over the rows that have such a word; the sum is divided by hand, as none may have one.
        losses = [nn.functional.cross_entropy(logits.float(), words, ignore_index=IGNORED, reduction="sum")
                  / (words != IGNORED).sum().clamp(min=1) for logits, words in said]  # fmt: skip
        return torch.stack(losses), [logits for logits, _ in said]


class ImageWords(WordPredictor):
    """A CLIP vision model, and what it says of images or parts of them: the stand-in for CLIP's training."""

    def forward(self, image: torch.Tensor, places: torch.Tensor, of_image: torch.Tensor, of_patches: torch.Tensor):
        losses, logits = self.predict(*self.see(image, places), of_image, of_patches)
        return {"loss": losses.sum(), "logits": logits}

    def see(self, image: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(rows, patches, width)` and `(rows, 2 * width)` of images that cover some of the positions."""
        embeddings = self.vision.embeddings
        patches = embeddings.patch_embedding(self.pixels(image)).flatten(2).transpose(1, 2)
        patches = patches + embeddings.position_embedding(places)
        first = embeddings.class_embedding + embeddings.position_embedding.weight[0]
        tokens = torch.cat([first.expand(len(image), 1, -1), patches], 1)
        tokens = self.vision.encoder(inputs_embeds=self.vision.pre_layrnorm(tokens)).last_hidden_state
        patches = tokens[:, 1:]
        return patches, torch.cat([self.vision.post_layernorm(tokens[:, 0]), patches.mean(1)], 1)


def of_machine() -> dict[str, Any]:
    """Settings of every training that depend on the machine: where it runs, with which numbers, and who draws."""
    if torch.cuda.is_available():
        return {"use_cpu": False, "tf32": True, "bf16": False, "dataloader_num_workers": GPU_WORKERS}
    return {"use_cpu": True, "bf16": bfloat16_is_fast(), "dataloader_num_workers": 1}


@functools.cache
def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies matrices of bfloat16 faster than those of float32."""

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(1024, 1024, dtype=dtype)
        return min(timeit.repeat(lambda: matrix @ matrix, number=3, repeat=3))

    return seconds(torch.bfloat16) < seconds(torch.float32)


def settings(folder: Path, **values) -> TrainingArguments:
    """Settings that all parts share."""
    return TrainingArguments(
        output_dir=str(folder), adam_beta2=0.98, max_grad_norm=1.0, logging_steps=20, save_steps=200,
        save_total_limit=1, report_to="none", remove_unused_columns=False, disable_tqdm=None, seed=0, **of_machine(),
        **values,
    )  # fmt: skip


def fit(
    model: nn.Module,
    data: IterableDataset,
    args: TrainingArguments,
    collate: Callable = default_collate,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Trains to the end, going on from the last checkpoint if there is one."""
    trainer = Trainer(model, args, train_dataset=data, data_collator=collate, optimizers=(optimizer, None))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir))


def train_language_model(
    world: World, tokenizer_folder: Path, scratch: Path, folder: Path, steps: int, seed: int
) -> None:
    """A LLaMA that has read documents; stage 1 freezes it."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    begin_with_induction_heads(model)
    model.set_attn_implementation("eager")
    args = settings(
        scratch, max_steps=steps, per_device_train_batch_size=ROWS, learning_rate=1e-3, warmup_steps=50,
        lr_scheduler_type="cosine", weight_decay=0.05,
    )  # fmt: skip
    fit(model, Text(world, tokenizer, (1, seed)), args, pad)
    model.config.use_cache = True  # the Trainer turns it off, and it would be saved so
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_vision(world: World, scratch: Path, folder: Path, steps: int, seed: int) -> None:
    """A CLIP vision model that knows what scenes show."""
    set_seed(0)
    config = CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, image_size=SIZE,
        patch_size=PATCH, hidden_act="quick_gelu",
    )  # fmt: skip
    processor = MplugOwlImageProcessor(size={"height": SIZE, "width": SIZE})
    model = ImageWords(CLIPVisionModel(config), processor)
    for number, lesson in enumerate(LESSONS, 2):
        args = settings(
            scratch / lesson.name, max_steps=max(1, round(lesson.share * steps)), learning_rate=1e-3, warmup_steps=50,
            per_device_train_batch_size=lesson.rows, lr_scheduler_type=lesson.schedule, weight_decay=0.05,
        )  # fmt: skip
        fit(model, Seen(world, lesson, (number, seed)), args)
    model.vision.save_pretrained(folder)
    processor.save_pretrained(folder)
