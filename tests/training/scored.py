"""What runs of any number of processes compare: `test_distributed.py` runs it alone, `two_processes.py` in each."""

import json
from functools import partial
from pathlib import Path
from unittest.mock import patch

from transformers import AutoProcessor, Seq2SeqTrainingArguments

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import ConversationCollator, Mixture, OwlSeq2SeqTrainer, OwlTrainer
from transformers_owl.training.metrics import METRICS
from transformers_owl.training.mixture import Group


SIZES = [(1, 1), (5, 2), (4, 3)]  # rows, and those of a batch


def note_pairs(seen: dict[str, list], pairs) -> int:
    seen["recipe"] = pairs
    return len(pairs)


def note_ids(seen: dict[str, list], evaluated) -> dict:
    """Without padding and special tokens."""
    for name, rows in (("predictions", evaluated.predictions), ("labels", evaluated.label_ids)):
        seen[name] = [[token for token in row if token > 2] for row in rows.tolist()]
    return {}


def scored(folder: Path, rank: int = 0, world_size: int = 1) -> list[dict]:
    """Pairs of answers that the recipes' metrics get, and those that `compute_metrics` gets, with the losses."""
    settings = json.loads((folder / "settings.json").read_text())
    processor = AutoProcessor.from_pretrained(settings["model"])
    model = MplugOwlForConditionalGeneration.from_pretrained(settings["model"])
    model.generation_config.max_new_tokens = 12
    collator = ConversationCollator(processor)
    group = Group.from_dict({"sources": [settings["sources"]["rows"]["source"]]})
    mixture = Mixture({"rows": group}, collator, 2, rank=rank, world_size=world_size)
    found = []
    for count, batch in SIZES:
        arguments = Seq2SeqTrainingArguments(
            str(folder / "scored"), max_steps=1, per_device_train_batch_size=2, per_device_eval_batch_size=batch,
            predict_with_generate=True, remove_unused_columns=False, report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        rows = json.loads((folder / "asked.json").read_text())[:count]
        given = {"eval_dataset": rows, "data_collator": collator}
        seen: dict[str, list] = {}
        with patch.dict(METRICS, exact_match=partial(note_pairs, seen)):
            logged = OwlTrainer(model, arguments, mixture, metrics=["exact_match"], **given).evaluate()
        OwlSeq2SeqTrainer(model, arguments, compute_metrics=partial(note_ids, seen), **given).evaluate()
        found.append({"scored": logged["eval_exact_match"], **seen})
    return json.loads(json.dumps(found))
