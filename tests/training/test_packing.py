"""Packed rows: the same loss and gradients with less padding, and no conversation sees another."""

import json
from itertools import pairwise

import PIL.Image
import pytest
import torch
from conftest import GoldenCase

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import ConversationCollator
from transformers_owl.training.packing import check_packing
from transformers_owl.training.train import train


def conversation(text: str, answer: str, grey: int | None = None) -> dict:
    seen = [] if grey is None else [{"type": "image", "image": PIL.Image.new("RGB", (20, 20), (grey, 40, 90))}]
    return {
        "messages": [
            {"role": "user", "content": [*seen, {"type": "text", "text": text}]},
            {"role": "assistant", "content": answer},
        ]
    }


SAMPLES = [
    conversation("a b c", "one two"), conversation("what is it", "a thing", 10), conversation("d", "e"),
    conversation("and this", "another thing of some length", 200), conversation("f g", "h i j"),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(llama):
    return MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)


def gradients(model, batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("length", [300, 10_000])
def test_loss_and_gradients_are_those_of_single_rows(model, llama_processor, attention, length):
    model.set_attn_implementation(attention)
    plain = ConversationCollator(llama_processor)(SAMPLES)
    packed = ConversationCollator(llama_processor, packed_length=length)(SAMPLES)
    assert packed["input_ids"].numel() < 0.8 * plain["input_ids"].numel()
    assert (packed["labels"] != -100).sum() == (plain["labels"] != -100).sum()
    loss, expected = gradients(model, plain)
    packed_loss, found = gradients(model, packed)
    assert packed_loss == pytest.approx(loss, abs=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6, rtol=1e-4), name


def test_no_conversation_sees_another(model, llama_processor):
    """With another image in one of them, the logits of the others stay as they were."""
    collator = ConversationCollator(llama_processor, packed_length=10_000)
    changed = [*SAMPLES[:1], conversation("what is it", "a thing", 90), *SAMPLES[2:]]
    before, after = (collator(samples) for samples in (SAMPLES, changed))
    with torch.no_grad():
        old, new = (model(**batch).logits[0] for batch in (before, after))
    starts = [*(before["position_ids"][0] == 0).nonzero().flatten().tolist(), len(old)]
    other = [torch.allclose(old[start:end], new[start:end], atol=1e-5) for start, end in pairwise(starts)]
    assert len(other) == 5 and other.count(False) == 1


def test_conversations_stay_whole_and_in_few_rows(llama_processor):
    collator = ConversationCollator(llama_processor, packed_length=300)
    lengths = sorted(len(collator.encode(sample["messages"])["input_ids"]) for sample in SAMPLES)
    batch = collator(SAMPLES)
    rows = []
    for positions, ids in zip(batch["position_ids"], batch["input_ids"], strict=True):
        kept = positions[ids != llama_processor.tokenizer.pad_token_id]
        starts = [*(kept == 0).nonzero().flatten().tolist(), len(kept)]
        rows += [end - start for start, end in pairwise(starts)]
    assert sorted(rows) == lengths
    assert len(batch["input_ids"]) < len(SAMPLES) and batch["input_ids"].shape[1] <= 300


def recipe(files, tmp_path, model: str, packing: bool) -> list[str]:
    options = {
        "model": model, "data": json.dumps({"text": {"sources": [files.text(range(8))]}}),
        "output_dir": tmp_path / f"packing-{packing}", "packing": packing, "max_steps": 2, "learning_rate": 1e-3,
        "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "lora_dropout": 0, "use_cpu": True,
    }  # fmt: skip
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


@pytest.mark.slow
def test_a_recipe_with_packing_logs_the_same(files, tmp_path, llama):
    histories = []
    for packing in (False, True):
        trainer = train(None, recipe(files, tmp_path, llama.checkpoint, packing))
        trainer.model.eval()
        histories.append([entry for entry in trainer.state.log_history if "loss" in entry])
    for plain, packed in zip(*histories, strict=True):
        assert packed["loss"] == pytest.approx(plain["loss"], abs=1e-4)


def test_language_models_that_cannot_keep_conversations_apart_are_refused():
    bloom = MplugOwlForConditionalGeneration.from_pretrained(GoldenCase("image-bloom").checkpoint)
    with pytest.raises(ValueError, match="type 'bloom' cannot separate packed conversations"):
        check_packing(bloom)
