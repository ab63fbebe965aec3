"""Labels lie on the answers alone; a cut never divides an image; the plain Trainer learns from such batches."""

import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import ConversationCollator, prepare_stage


RED, BLUE = (PIL.Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))


def user(text, *images):
    return {
        "role": "user",
        "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}],
    }


def assistant(text):
    return {"role": "assistant", "content": text}


def by_the_book(processor, messages) -> tuple[list[int], list[int]]:
    """Ids and labels put together slowly: prompt chunks and answers one by one."""
    tokenizer = processor.tokenizer
    text = processor.apply_chat_template([], add_generation_prompt=False) if not messages else None
    ids, labels, chunk = [1], [-100], text or SYSTEM
    for message in messages:
        if message["role"] == "user":
            for piece in message["content"]:
                if piece["type"] == "image":
                    new = tokenizer(chunk + "\nHuman: ", add_special_tokens=False)["input_ids"]
                    ids += [*new, *[processor.image_token_id] * 65]
                    labels += [-100] * (len(new) + 65)
                    chunk = ""
                else:
                    chunk += "\nHuman: " + piece["text"]
        else:
            prompt = tokenizer(chunk + "\nAI: ", add_special_tokens=False)["input_ids"]
            answer = [*tokenizer(message["content"], add_special_tokens=False)["input_ids"], 2]
            ids, labels, chunk = ids + prompt + answer, labels + [-100] * len(prompt) + answer, ""
    return ids, labels


SYSTEM = (
    "The following is a conversation between a curious human and AI assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
texts = st.text(st.sampled_from("abc AI:Human\né中"), min_size=1, max_size=20)
turns = st.tuples(texts, st.integers(0, 2), texts)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(turns, min_size=1, max_size=3), min_size=1, max_size=3))
def test_batches_equal_a_slow_reference(llama_processor, conversations):
    samples = [
        {"messages": [m for text, n, answer in turns for m in (user(text, *[RED, BLUE][:n]), assistant(answer))]}
        for turns in conversations
    ]
    batch = ConversationCollator(llama_processor)(samples)
    for sample, ids, mask, labels in zip(
        samples, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        expected_ids, expected_labels = by_the_book(llama_processor, sample["messages"])
        assert ids[mask.bool()].tolist() == expected_ids
        assert labels[mask.bool()].tolist() == expected_labels
        assert (labels[~mask.bool()] == -100).all()
    images = sum(n for turns in conversations for _, n, _ in turns)
    assert len(batch.get("pixel_values", [])) == images


def test_the_ids_before_the_first_label_are_the_prompt(llama_processor):
    question = user("What is this? AI: nothing", RED)
    row = ConversationCollator(llama_processor).encode([question, assistant("It is red.")])
    first = int((row["labels"] != -100).int().argmax())
    prompt = llama_processor.apply_chat_template(
        [question], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert row["input_ids"][:first].tolist() == prompt["input_ids"][0].tolist()


@pytest.mark.parametrize("max_length", range(70, 330, 13))
def test_a_cut_divides_no_image_and_adds_no_eos(llama_processor, max_length):
    messages = [user("One?", RED), assistant("First answer."), user("Two?", RED, BLUE), assistant("Second answer.")]
    whole = ConversationCollator(llama_processor).encode(messages)
    row = ConversationCollator(llama_processor, max_length=max_length).encode(messages)
    length = len(row["input_ids"])
    assert length <= max_length
    assert row["input_ids"].tolist() == whole["input_ids"][:length].tolist()
    assert row["labels"].tolist() == whole["labels"][:length].tolist()
    assert (row["input_ids"] == llama_processor.image_token_id).sum() == 65 * len(row["image"])
    if length < max_length:
        assert whole["input_ids"][length] == llama_processor.image_token_id


def test_a_sample_without_an_answer_left_is_named(llama_processor):
    with pytest.raises(ValueError, match=r"No answer begins within max_length=60: .*How long"):
        ConversationCollator(llama_processor, max_length=60)([{"messages": [user("How long?", RED), assistant("Yes")]}])


@pytest.mark.parametrize("stage", ["pretrain", "instruct", "instruct-full"])
def test_the_plain_trainer_learns(llama, llama_processor, stage, tmp_path):
    """The loss of two images with two captions falls, and what was saved answers like what was trained."""
    torch.manual_seed(0)
    model = prepare_stage(MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint), stage)
    samples = [
        {"messages": [user("What colour?", RED), assistant("red")]},
        {"messages": [user("What colour?", BLUE), assistant("blue")]},
    ]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=12,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=samples, data_collator=ConversationCollator(llama_processor))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert float(losses[-1]) < 0.7 * float(losses[0])


def test_full_fine_tuning_moves_the_embedding_of_eos(llama, llama_processor):
    """The release names EOS as padding, which would stop its gradient; later turns read EOS."""
    model = prepare_stage(MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint), "instruct-full")
    messages = [user("A?"), assistant("b"), user("C?"), assistant("d")]
    model(**ConversationCollator(llama_processor)([{"messages": messages}])).loss.backward()
    assert model.get_input_embeddings().weight.grad[2].abs().max() > 0


def test_pixels_are_the_processors_to_the_last_bit(llama_processor, images):
    """Levels of 0 to 255 travel, and a table makes them what the image processor would have made."""
    collator = ConversationCollator(llama_processor)
    batch = collator([{"messages": [user("A?", *images), assistant("b")]}])
    expected = llama_processor.image_processor(images, return_tensors="pt")["pixel_values"]
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.equal(batch["pixel_values"], expected)
    assert "pixel_levels" not in batch
