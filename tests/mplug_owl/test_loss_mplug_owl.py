"""What trainers of others do: labels copied from the ids, dropout turned off, metrics on mixed batches."""

import math

import PIL.Image
import pytest
import torch
from conftest import tiny_config
from transformers import Trainer, TrainingArguments

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import ConversationCollator


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return MplugOwlForConditionalGeneration(tiny_config())


def row(model, length: int, images: int, masked: bool) -> dict[str, torch.Tensor]:
    """Random ids with so many images, and labels copied from them, with or without those of images."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, 100, (length,), generator=generator)
    positions = model.config.num_query_tokens + 1
    ids[1 : 1 + images * positions] = model.config.image_token_id
    labels = ids.masked_fill(ids == model.config.image_token_id, -100) if masked else ids.clone()
    pixels = torch.randn(images, 3, 28, 28, generator=generator)
    return {"input_ids": ids, "labels": labels, **({"pixel_values": pixels} if images else {})}


def collate(rows):
    batch = {name: torch.stack([each[name] for each in rows]) for name in ("input_ids", "labels")}
    pixels = [each["pixel_values"] for each in rows if "pixel_values" in each]
    return batch | ({"pixel_values": torch.cat(pixels)} if pixels else {})


def by_hand(model, rows) -> float:
    """The mean over the words of all rows."""
    total, count = 0.0, 0
    for each in rows:
        inputs = {name: value[None] if name != "pixel_values" else value for name, value in each.items()}
        labels = inputs.pop("labels")[0, 1:]
        with torch.no_grad():
            chances = model(**inputs).logits[0, :-1].float().log_softmax(-1)
        words = (labels != model.config.image_token_id) & (labels != -100)
        total -= chances[words, labels[words]].sum().item()
        count += int(words.sum())
    return total / count


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("images", [(0, 0), (2, 2), (0, 2), (3, 1)])
def test_a_trainers_loss_is_the_mean_over_words(tiny, images, masked, tmp_path):
    rows = [row(tiny, 20, count, masked) for count in images]
    arguments = TrainingArguments(
        tmp_path, max_steps=1, per_device_train_batch_size=2, learning_rate=0.0, logging_steps=1, report_to=[],
        remove_unused_columns=False, save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    for layer in tiny.model.abstractor.layers:
        layer.cross_attn.dropout.p = 0.0
    trainer = Trainer(tiny, arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(by_hand(tiny.eval(), rows), abs=1e-4)


@pytest.mark.parametrize("masked", [True, False])
def test_gradients_of_micro_batches_add_up(tiny, masked):
    """Where the rows of a step have the same share of words, their sum is the gradient of the whole step's mean."""
    tiny.eval()
    rows = [row(tiny, 20, 2, masked), row(tiny, 20, 2, masked)]
    whole = collate([{**each, "labels": row(tiny, 20, 2, True)["labels"]} for each in rows])
    tiny.zero_grad()
    tiny(**whole).loss.backward()
    expected = tiny.lm_head.weight.grad.clone()
    tiny.zero_grad()
    counted = sum(int((each["labels"][1:] != -100).sum()) for each in rows)
    for each in rows:
        tiny(**collate([each]), num_items_in_batch=torch.tensor(counted)).loss.backward()
    assert torch.allclose(tiny.lm_head.weight.grad, expected, atol=1e-6, rtol=1e-4)


def test_a_batch_without_a_word_has_no_loss(tiny):
    ids = torch.full((1, 5), tiny.config.image_token_id)
    loss = tiny(input_ids=ids, labels=ids, pixel_values=torch.zeros(1, 3, 28, 28), num_items_in_batch=torch.tensor(4))
    assert loss.loss.item() == 0.0


def test_dropout_is_turned_off_as_others_do_it():
    """TRL sets `p` of every `nn.Dropout` to 0: a model in training must then answer as in evaluation."""
    model = MplugOwlForConditionalGeneration(tiny_config())
    inputs = {name: value for name, value in collate([row(model, 20, 2, True)]).items() if name != "labels"}
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        assert not torch.allclose(model.train()(**inputs).logits, expected, atol=1e-6)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0
        assert torch.equal(model(**inputs).logits, expected)


def test_trl_loads_a_release_by_its_name(llama):
    utils = pytest.importorskip("trl.trainer.utils")
    model = utils.create_model_from_path(llama.checkpoint, dtype="float32", device_map=None)
    assert type(model) is MplugOwlForConditionalGeneration


def test_metrics_on_batches_with_and_without_images(llama, llama_processor, tmp_path):
    def message(text, *images):
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
        return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]}

    image = PIL.Image.new("RGB", (8, 8))
    samples = [message("What?", image), message("What is it then?"), message("This?", image, image), message("Or?")]
    seen = []

    def metrics(prediction):
        seen.append(prediction.predictions)
        return {"share": float((prediction.label_ids != -100).mean())}

    arguments = TrainingArguments(
        tmp_path, per_device_eval_batch_size=1, remove_unused_columns=False, report_to=[], use_cpu=True
    )
    model = MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)
    collator = ConversationCollator(llama_processor)
    trainer = Trainer(
        model, arguments, eval_dataset=samples, data_collator=collator, compute_metrics=metrics, train_dataset=samples
    )
    found = trainer.evaluate()
    longest = max(len(collator.encode(sample["messages"])["input_ids"]) for sample in samples)
    assert seen[0].shape == (4, longest, model.config.text_config.vocab_size)
    assert 0 < found["eval_share"] < 1 and math.isfinite(found["eval_loss"])


@pytest.mark.parametrize("shape", [(2, 14, 1), (2, 13), (2, 15), (1, 14), (14,), (14, 2), (28,)])
def test_labels_of_another_shape_are_refused(tiny, shape):
    """Of (2, 14, 1) the loss would be that of no label at all: not a number."""
    batch = collate([row(tiny, 14, 1, False), row(tiny, 14, 0, False)])
    batch["labels"] = torch.full(shape, 5)
    with pytest.raises(ValueError, match=r"The shape of labels is .* but must be \(2, 14\), that of the logits"):
        tiny(**batch)
