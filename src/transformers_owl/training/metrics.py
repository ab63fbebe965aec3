"""Metrics of generated answers against those of the evaluation data."""

import math
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from transformers import TrainingArguments

from ..mplug_owl.configuration_mplug_owl import check_names
from ..mplug_owl.processing_mplug_owl import read_chats
from .collator import ConversationCollator


MORE_TOKENS = 16  # than the longest answer of the data has: one that goes on after that is another
Pairs = Sequence[tuple[str, str]]  # an answer, and the one of the data


def exact_match(pairs: Pairs) -> float:
    """The share of answers that equal the data's exactly."""
    return sum(answer == reference for answer, reference in pairs) / len(pairs)


def accuracy(pairs: Pairs) -> float:
    """The share of answers that equal the data's except for case, punctuation and articles, as in SQuAD."""
    from torchmetrics.functional.text import squad

    answers = [{"prediction_text": answer, "id": str(number)} for number, (answer, _) in enumerate(pairs)]
    references: list[Any] = [
        {"answers": {"answer_start": [0], "text": [reference]}, "id": str(number)}
        for number, (_, reference) in enumerate(pairs)
    ]
    return squad(answers, references)["exact_match"].item() / 100


def anls(pairs: Pairs) -> float:
    """Average normalised Levenshtein similarity (0 to 1), as in DocVQA: below one half it counts as 0."""
    from anls_star import anls_score

    scores: list[Any] = [anls_score(reference, answer) for answer, reference in pairs]
    return sum(scores) / len(pairs)


def cider(pairs: Pairs) -> float:
    """CIDEr (0 to 10) over lower-case runs of letters and digits, with the data's answers as corpus."""
    from pycocoevalcap.cider.cider import Cider

    answers, references = (
        {number: [" ".join(re.findall(r"\w+", pair[side].lower()))] for number, pair in enumerate(pairs)}
        for side in (0, 1)
    )
    return float(Cider().compute_score(references, answers)[0])


METRICS: dict[str, Callable[[Pairs], float]] = {
    "exact_match": exact_match,
    "accuracy": accuracy,
    "anls": anls,
    "cider": cider,
}
NEEDED = {"accuracy": "torchmetrics", "anls": "anls_star", "cider": "pycocoevalcap"}


def check_metrics(names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: for an unknown metric, or one whose package is not installed.
    """
    check_names(names, METRICS, "metric")
    for name in names:
        if name in NEEDED and find_spec(NEEDED[name]) is None:
            raise ValueError(f"The metric {name} needs the package {NEEDED[name]}: install the extra `metrics`.")


def ask(chat: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Splits a chat into the messages before its last answer, and that answer."""
    messages = read_chats(chat)
    last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    content = messages[last]["content"]
    return messages[:last], content if isinstance(content, str) else "".join(part["text"] for part in content)


def prompts(chats: Sequence[list[dict[str, Any]]], collator: ConversationCollator) -> tuple[Any, list[str]]:
    """
    Inputs of `generate` for the last answer of each chat, padded on the left, and the chats' own answers. The prompts
    are those of inference, with the collator's number of frames per video.
    """
    asked, answers = map(list, zip(*map(ask, chats), strict=True))
    options = {"padding": True, "padding_side": "left", "num_frames": collator.num_frames}
    inputs = collator.processor.apply_chat_template(
        asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs=options,
    )  # fmt: skip
    return inputs, answers


def write_answers(
    model: Any, samples: Sequence[dict[str, Any]], collator: ConversationCollator, args: TrainingArguments
) -> list[tuple[str, str]]:
    """
    The model's greedy last answers and the samples' own; every process generates its share, and gets all of them.
    """
    # All processes generate as often, for collective operations; what came twice is left out.
    turns = range(args.process_index, math.ceil(len(samples) / args.world_size) * args.world_size, args.world_size)
    numbers = [turn % len(samples) for turn in turns]
    decode = collator.processor.batch_decode
    # Of all samples: whom one shares a batch with says nothing about when it is cut off.
    answers = [ask(sample["messages"])[1] for sample in samples]
    longest = max(len(ids) for ids in collator.processor.tokenizer(answers)["input_ids"])
    written: list[tuple[int, tuple[str, str]]] = []
    model.eval()
    for first in range(0, len(numbers), args.per_device_eval_batch_size):
        batch = numbers[first : first + args.per_device_eval_batch_size]
        inputs, references = prompts([samples[number]["messages"] for number in batch], collator)
        with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            ids = model.generate(
                **send_to_device(inputs, args.device),
                max_new_tokens=longest + MORE_TOKENS,
                do_sample=False, use_cache=True, synced_gpus=args.world_size > 1,
            )  # fmt: skip
        found = decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        pairs = zip(found, references, strict=True)
        written += zip(batch, [(answer.strip(), reference.strip()) for answer, reference in pairs], strict=True)
    return list(dict(sorted(gather_object(written))).values())
