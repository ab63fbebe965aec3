"""Packed rows compared with padded ones: seconds of forward and backward pass of the same conversations, on CPU.

python research/benchmarks/packing.py [--pairs 7] [--json FILE]

The conversations have answers of 5 to 200 words, evenly spread, and a quarter of them have an image. Runs alternate. A
row gives medians and the median ratio of the pairs.
"""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from side_by_side import Report, alternate, seconds
from training import CHECKPOINT, ROOT, build

from transformers_owl import MplugOwlProcessor
from transformers_owl.training import ConversationCollator


CONVERSATIONS = 32
LENGTH = 1024


def conversations() -> list[dict]:
    random = np.random.default_rng(0)
    image = PIL.Image.open(ROOT / "examples/pictures/cat.jpg")
    found = []
    for number in range(CONVERSATIONS):
        seen = [{"type": "image", "image": image}] if number % 4 == 0 else []
        question = {"role": "user", "content": [*seen, {"type": "text", "text": "Tell me more."}]}
        answer = " ".join(["word"] * int(random.integers(5, 200)))
        found.append({"messages": [question, {"role": "assistant", "content": answer}]})
    return found


def compare(stage: str, batches: list[dict], pairs: int) -> dict[str, float]:
    model = build(stage).train()
    packed, padded = (lambda batch=batch: seconds(lambda: model(**batch).loss.backward()) for batch in batches)
    return alternate(pairs, packed, padded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    processor = MplugOwlProcessor.from_pretrained(str(CHECKPOINT))
    processor.image_processor.size = {"height": 224, "width": 224}
    samples = conversations()
    batches = [ConversationCollator(processor, packed_length=length)(samples) for length in (LENGTH, None)]
    packed, padded = (batch["input_ids"].numel() for batch in batches)
    report = Report()
    report.note(f"positions: {packed} packed, {padded} padded")
    for stage in ("pretrain", "instruct"):
        row = {"beside": "padded", "images": 1, **compare(stage, batches, options.pairs)}
        report.add(f"packed, {stage}", CONVERSATIONS, torch.float32, row)
    if options.json is not None:
        report.write(options.json)


if __name__ == "__main__":
    main()
