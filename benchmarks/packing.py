"""Packed rows beside padded ones: seconds of forward and backward pass of the same conversations, on CPU.

python benchmarks/packing.py [--pairs 7] [--json FILE]

The conversations have answers of 5 to 200 words, evenly spread; a quarter of them have a picture. Runs alternate; a row
gives medians and the median ratio of the pairs.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import PIL.Image
from side_by_side import seconds
from training import CHECKPOINT, ROOT, build

from transformers_owl import MplugOwlProcessor
from transformers_owl.training import ConversationCollator


CONVERSATIONS = 32
LENGTH = 1024


def conversations() -> list[dict]:
    random = np.random.default_rng(0)
    picture = PIL.Image.open(ROOT / "examples/pictures/cat.jpg")
    found = []
    for number in range(CONVERSATIONS):
        seen = [{"type": "image", "image": picture}] if number % 4 == 0 else []
        question = {"role": "user", "content": [*seen, {"type": "text", "text": "Tell me more."}]}
        answer = " ".join(["word"] * int(random.integers(5, 200)))
        found.append({"messages": [question, {"role": "assistant", "content": answer}]})
    return found


def passes(model, batch: dict) -> float:
    return seconds(lambda: model(**batch).loss.backward())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    processor = MplugOwlProcessor.from_pretrained(str(CHECKPOINT))
    processor.image_processor.size = {"height": 224, "width": 224}
    samples, results = conversations(), {}
    padded = ConversationCollator(processor)(samples)
    packed = ConversationCollator(processor, packed_length=LENGTH)(samples)
    for stage in ("pretrain", "instruct"):
        model = build(stage).train()
        pairs = [[passes(model, packed), passes(model, padded)] for _ in range(options.pairs + 1)]
        results[stage] = pairs[1:]
    print(f"positions: {packed['input_ids'].numel()} packed, {padded['input_ids'].numel()} padded")
    print(f"{'seconds':12}{'packed':>10}{'padded':>10}{'ratio':>8}")
    for name, pairs in results.items():
        ours, other = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        print(f"{name:12}{ours:10.2f}{other:10.2f}{statistics.median(o / p for o, p in pairs):8.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
