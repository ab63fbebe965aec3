"""TRL's trainers get the ids of training from our collators, and DPO begins where it should."""

import itertools
import math

import datasets
import pytest
import torch
from conftest import GOLDEN
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import ConversationCollator, DPOCollator, SFTCollator


IMAGE = str(GOLDEN / "image-llama/image_0.png")
SETTINGS = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


EARLIER = [user("What is it?"), answer("An owl, I think."), user("Sure?")]
PROMPTS = {
    "one image": ([IMAGE], [user("What is it?")]),
    "two images": ([IMAGE, IMAGE], [user("Which is larger?")]),
    "no image": ([], [user("What is an owl?")]),
    "earlier answers": ([IMAGE], EARLIER),
    "a system message": ([], [{"role": "system", "content": "Be brief."}, user("Hi")]),
}
ANSWERS = ("A barn owl.", " no", "Perhaps a dog, perhaps none of them.", "</s>")


def with_images(images: list[str], messages: list[dict]) -> list[dict]:
    """Written out by hand: images stand before the first question."""
    first = next(number for number, message in enumerate(messages) if message["role"] == "user")
    content = [{"type": "image", "path": path} for path in images]
    content.append({"type": "text", "text": messages[first]["content"]})
    return [*messages[:first], {"role": "user", "content": content}, *messages[first + 1 :]]


def rows(names: tuple[str, ...] = tuple(PROMPTS)) -> list[dict]:
    return [
        {"images": PROMPTS[name][0], "prompt": PROMPTS[name][1], "chosen": [answer(yes)], "rejected": [answer(no)]}
        for name in names
        for yes, no in itertools.pairwise(ANSWERS)
    ]


def assert_same(batch: dict, expected: dict, names: tuple[str, ...]) -> None:
    for name in names:
        assert torch.equal(batch[name], expected[name]), name


def test_preferences_have_the_ids_of_training(llama_processor):
    """Of any prompt and answer, together in one batch; the last answer alone counts."""
    samples = rows()
    batch = DPOCollator(llama_processor)(samples)
    chats = [
        with_images(sample["images"], [*sample["prompt"], *sample[which]])
        for which in ("chosen", "rejected")
        for sample in samples
    ]
    expected = ConversationCollator(llama_processor)([{"messages": chat} for chat in chats])
    assert_same(batch, expected, ("input_ids", "attention_mask", "pixel_values"))
    assert "labels" not in batch
    tokenizer = llama_processor.tokenizer
    for ids, mask, chat in zip(batch["input_ids"], batch["completion_mask"].bool(), chats, strict=True):
        end = int(mask.nonzero()[-1])
        assert ids[end] == tokenizer.eos_token_id and mask.nonzero().flatten().diff().eq(1).all()
        assert tokenizer.decode(ids[mask][:-1]).strip() == chat[-1]["content"].strip()
        assert (ids[end + 1 :] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize("where", ["chosen", "rejected"])
def test_an_answer_behind_the_end_is_refused(llama_processor, where):
    row = {"images": [], "prompt": EARLIER, "chosen": [answer("a")], "rejected": [answer("b")]}
    start = len(llama_processor.encode_chat([*EARLIER, answer("a")]).ids) - 2
    DPOCollator(llama_processor, max_length=start + 1)([row])
    longer = {**row, "prompt": [*EARLIER, answer("No."), user("Why?")]}
    with pytest.raises(ValueError, match=f"The chosen answer begins after max_length={start}"):
        DPOCollator(llama_processor, max_length=start)([row, longer])


@pytest.mark.parametrize("names", [("one image", "no image"), ("no image", "earlier answers")])
def test_dpo_begins_at_the_logarithm_of_two(llama, llama_processor, tmp_path, names):
    """The policy is its own reference: no dropout may tell them apart, that of the abstractor neither."""
    model = MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)
    assert model.config.visual_abstractor_config.attention_probs_dropout_prob > 0
    dataset = datasets.Dataset.from_list(rows(names)).cast_column("images", [datasets.Image()])
    trainer = DPOTrainer(
        model, args=DPOConfig(str(tmp_path), max_steps=2, logging_steps=1, learning_rate=1e-2, **SETTINGS),
        train_dataset=dataset, processing_class=llama_processor, data_collator=DPOCollator(llama_processor),
    )  # fmt: skip
    trainer.train()
    first, second = (entry["loss"] for entry in trainer.state.log_history[:2])
    assert first == pytest.approx(math.log(2), abs=1e-5)
    assert second != pytest.approx(math.log(2), abs=1e-3)


def test_sft_learns_what_training_learns(llama_model, llama, llama_processor, tmp_path):
    chats = [(images, [*prompt, answer(text)]) for images, prompt in PROMPTS.values() for text in ANSWERS]
    samples = [{"images": images, "messages": chat} for images, chat in chats]
    expected = ConversationCollator(llama_processor)(
        [{"messages": with_images(images, chat)} for images, chat in chats]
    )
    batch = SFTCollator(llama_processor)(samples)
    assert_same(batch, expected, ("input_ids", "attention_mask", "labels", "pixel_values"))
    with torch.no_grad():
        loss = llama_model.eval()(**expected).loss.item()
    model = MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)
    dataset = datasets.Dataset.from_list(samples).cast_column("images", [datasets.Image()])
    config = SFTConfig(str(tmp_path), max_length=1024, per_device_eval_batch_size=len(samples), **SETTINGS)
    trainer = SFTTrainer(
        model, args=config, train_dataset=dataset, eval_dataset=dataset,
        processing_class=llama_processor, data_collator=SFTCollator(llama_processor),
    )  # fmt: skip
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)
