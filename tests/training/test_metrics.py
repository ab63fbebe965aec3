"""Metrics on generated answers: values by hand, answers as in inference, and the best model by one of them."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, TrainingArguments

from transformers_owl.training import ConversationCollator, Rows
from transformers_owl.training.metrics import METRICS, NEEDED, check_metrics, prompts, write_answers
from transformers_owl.training.train import train


QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--peak_tflops", "1", "--use_cpu", "true"]
PAIRS = [("Grey 3.", "grey 3"), ("grey 3", "grey 3"), ("the grey 3", "grey 4"), ("", "grey 3")]
BY_HAND = {
    "exact_match": 1 / 4,
    "accuracy": 2 / 4,
    # One and zero edits in 7 and 6 characters; "the grey 3" to "grey 4" are 5 in 10, which is half; none of 6 is left.
    "anls": (6 / 7 + 1 + 0.5 + 0) / 4,
}


def metric(name):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    return METRICS[name]


@pytest.mark.parametrize("name", BY_HAND)
def test_values_are_those_by_hand(name):
    assert metric(name)(PAIRS) == pytest.approx(BY_HAND[name])


def test_cider_is_that_of_its_paper():
    """Ten for the data's own words; of n-grams by hand for one word in common."""
    references = ["a grey cat sleeps here", "two owls look at us", "the red car is fast"]
    cider = metric("cider")
    assert cider([(text, text) for text in references]) == pytest.approx(10)
    assert cider([(f"{text.upper()}!", text) for text in references]) == pytest.approx(10)
    pairs = [("grey owl", references[0]), *[("", text) for text in references[1:]]]
    # One of five unigrams, each in one text of three: 1 * log(3)**2 / (sqrt(2) * log(3) * sqrt(5) * log(3)), less what
    # the second word weighs: "owl" is in no text and counts as in one. Lengths differ by three words; four n-grams.
    expected = 10 / 4 * (1 / math.sqrt(10)) * math.exp(-(3**2) / (2 * 6**2)) / 3
    assert cider(pairs) == pytest.approx(expected)


def test_what_is_not_installed_is_said(monkeypatch):
    with pytest.raises(ValueError, match=r"Unknown metric: 'rouge'.*Choose one of exact_match, accuracy, anls"):
        check_metrics(["rouge"])
    monkeypatch.setattr("transformers_owl.training.metrics.find_spec", lambda name: None)
    check_metrics(["exact_match"])
    for name, package in NEEDED.items():
        with pytest.raises(ValueError, match=f"{name} needs the package {package}: install the extra"):
            check_metrics([name])


CHATS = {
    "image": [{"type": "image"}, "What is it?", "An owl."],
    "no image": ["What?", "Nothing, it is only a much longer answer than the others are."],
    "two turns": [{"type": "image"}, "One?", "Yes.", "And two?", "No."],
    "two images": [{"type": "image"}, "One?", "Yes.", {"type": "image"}, "And two?", "No."],
    "question at the end": ["One?", "Yes.", {"type": "image"}, "And then?"],
}


def chat(parts, images):
    messages, content, images = [], [], iter(images)
    turn = 0
    for part in parts:
        if not isinstance(part, str):
            content.append({"type": "image", "image": next(images)})
        elif turn % 2 == 0:
            messages.append({"role": "user", "content": [*content, {"type": "text", "text": part}]})
            content, turn = [], turn + 1
        else:
            messages.append({"role": "assistant", "content": part})
            turn += 1
    return messages


@pytest.mark.parametrize("names", [*itertools.combinations(CHATS, 1), *itertools.combinations(CHATS, 3)])
def test_prompts_are_those_of_inference(names, llama_processor, images):
    """Ids, mask and pixels of the last answer's prompt, padded on the left."""
    chats = [chat(CHATS[name], images) for name in names]
    inputs, answers = prompts(chats, ConversationCollator(llama_processor))
    rows = []
    for messages, answer in zip(chats, answers, strict=True):
        last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
        assert answer == messages[last]["content"]
        rows.append(
            llama_processor.apply_chat_template(
                messages[:last], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        )
    width = inputs["input_ids"].shape[1]
    assert width == max(row["input_ids"].shape[1] for row in rows)
    for ids, mask, row in zip(inputs["input_ids"], inputs["attention_mask"], rows, strict=True):
        length = row["input_ids"].shape[1]
        assert torch.equal(ids[width - length :], row["input_ids"][0])
        assert mask.tolist() == [0] * (width - length) + [1] * length
    pixels = [row["pixel_values"] for row in rows if "pixel_values" in row]
    assert ("pixel_values" in inputs) == bool(pixels)
    assert not pixels or torch.equal(inputs["pixel_values"], torch.cat(pixels))


@pytest.fixture
def recipe(files, llama, tmp_path):
    def write(**values) -> Path:
        source = files.captions(range(100, 104))
        content = {
            "model": llama.checkpoint,
            "data": {"images": {"sources": [source]}},
            "eval_data": {"images": {"sources": [source]}, "text": {"sources": [files.text(range(3))]}},
            "output_dir": str(tmp_path / "out"), "max_length": 256, "per_device_train_batch_size": 4, "max_steps": 4,
            "per_device_eval_batch_size": 2, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2,
            "metrics": ["exact_match"], **values,
        }  # fmt: skip
        return files.recipe(content)

    return write


def test_the_best_model_is_that_of_a_metric(recipe, monkeypatch):
    """Logged at every evaluation, and what `load_best_model_at_end` goes by."""
    found = iter([0.75, 0.25])
    monkeypatch.setitem(METRICS, "exact_match", lambda pairs: next(found))
    path = recipe(load_best_model_at_end=True, metric_for_best_model="exact_match")
    trainer = train(path, QUIET)
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["eval_exact_match"] for entry in logged] == [0.75, 0.25]
    assert trainer.state.best_metric == 0.75
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")


def test_answers_are_the_models_own(recipe, llama, llama_processor, files, monkeypatch):
    """Each of the evaluation data, in their order, as `generate` writes it for the prompt alone."""
    seen = []
    monkeypatch.setitem(METRICS, "exact_match", lambda pairs: seen.extend(pairs) or 0.0)
    trainer = train(recipe(max_steps=1, eval_steps=1, save_strategy="no", stage="minigpt4"), QUIET)
    rows = [
        Rows(source["format"], source["path"]) for source in (files.captions(range(100, 104)), files.text(range(3)))
    ]
    samples = [source[number] for source in rows for number in range(len(source))]
    assert [reference for _, reference in seen] == [f"grey {n}" for n in (100, 101, 102, 103, 0, 1, 2)]
    model = trainer.model.eval()
    assert isinstance(model, type(AutoModelForImageTextToText.from_pretrained(llama.checkpoint)))
    for sample, (answer, _) in zip(samples, seen, strict=True):
        inputs = llama_processor.apply_chat_template(
            sample["messages"][:1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        whole = llama_processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
        assert answer and whole.startswith(answer)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_answers_do_not_depend_on_the_batch(llama_model, llama_processor, images, tmp_path, size):
    """Nor do those that the model goes on and on with: all are cut off at one length."""
    samples = [{"messages": chat(parts, images)} for parts in CHATS.values()]
    collator = ConversationCollator(llama_processor)
    alone, together = (
        write_answers(
            llama_model, samples, collator, TrainingArguments(tmp_path, per_device_eval_batch_size=rows, use_cpu=True)
        )
        for rows in (1, size)
    )
    assert alone == together
    assert len({answer for answer, _ in alone}) == len(samples)


def test_a_model_that_has_learned_its_data_scores_one(recipe, files):
    options = ["--stage", "instruct-full", "--learning_rate", "1e-2", "--max_steps", "40", "--eval_steps", "40"]
    path = recipe(metrics=[name for name in METRICS if name not in NEEDED], save_strategy="no", crop=[1, 1])
    content = yaml.safe_load(path.read_text())
    content["data"] = {"text": {"sources": [files.text(range(3))]}}  # images of a few grey levels look the same to it
    content["eval_data"] = content["data"]
    path.write_text(yaml.safe_dump(content))
    trainer = train(path, [*QUIET, *options])
    (logged,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert logged["eval_exact_match"] == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metrics": ["exactmatch"]}, "Unknown metric: 'exactmatch'. Did you mean 'exact_match'"),
        ({"eval_data": None}, r"`metrics` is \['exact_match'\], but there is no `eval_data`"),
    ],
)
def test_wrong_metrics_are_told(recipe, values, message):
    with pytest.raises(ValueError, match=message):
        train(recipe(**values), QUIET)
