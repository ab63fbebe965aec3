"""Seq2SeqTrainer over conversations: predictions are the answers that inference would write, whatever the batch."""

import itertools

import PIL.Image
import pytest
import torch
from test_metrics import CHATS, chat
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlProcessor
from transformers_owl.training import ConversationCollator, OwlSeq2SeqTrainer, prepare_stage
from transformers_owl.training.seq2seq import split_batch


NEW_TOKENS = 10


def asked_alone(processor, messages: list[dict]) -> tuple[dict[str, torch.Tensor], str]:
    """What `Chat` lets the model read before the last answer, earlier ones with their EOS; and that answer."""
    last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    ids, pixels = [], {}
    for number in range(0, last, 2):
        turn = messages[number]
        if number == 0:
            inputs = processor.apply_chat_template(
                [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        else:
            answer = processor.tokenizer(messages[number - 1]["content"] + "</s>", add_special_tokens=False)
            ids += answer["input_ids"]
            inputs = processor.continue_chat(messages[:number], turn, has_ended=True)
        ids += inputs["input_ids"][0].tolist()
        for name in ("pixel_values", "crop_positions"):
            if name in inputs:
                pixels[name] = torch.cat([*([pixels[name]] if name in pixels else []), torch.as_tensor(inputs[name])])
    prompt = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long), **pixels}
    return prompt, messages[last]["content"]


def arguments(folder, **values) -> Seq2SeqTrainingArguments:
    given = {"predict_with_generate": True, "remove_unused_columns": False, "report_to": [], "disable_tqdm": True}
    return Seq2SeqTrainingArguments(str(folder), use_cpu=True, save_strategy="no", **(given | values))


def ids_of(processor, row) -> list[int]:
    """Without what is behind an answer."""
    ids = [int(token) for token in row if token != -100]
    while ids and ids[-1] in (processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id):
        ids.pop()
    return ids


@pytest.fixture(scope="module")
def cropping(llama):
    """A processor that cuts images into up to four cells."""
    processor = MplugOwlProcessor.from_pretrained(llama.checkpoint)
    processor.image_processor.max_crops = 4
    return processor


@pytest.mark.parametrize("always", [None, "image"])
@pytest.mark.parametrize("crops", [False, True])
def test_a_batch_is_split_into_the_prompts_of_inference_and_the_answers(
    llama_processor, cropping, images, crops, always
):
    """Every combination of rows with and without images, of one turn and two, with what follows the last answer."""
    processor = cropping if crops else llama_processor
    wide = [image.resize((130, 50)) for image in images]
    collator = ConversationCollator(processor, always=always)
    for names in (*itertools.combinations(CHATS, 1), *itertools.combinations(CHATS, 2), [*CHATS][::-1]):
        chats = [chat(CHATS[name], wide) for name in names]
        asked, answers = split_batch(collator([{"messages": messages} for messages in chats]), collator)
        rows, wanted = zip(*(asked_alone(processor, messages) for messages in chats), strict=True)
        width = asked["input_ids"].shape[1]
        assert width == max(row["input_ids"].shape[1] for row in rows)
        for ids, mask, answer, row, text in zip(
            asked["input_ids"], asked["attention_mask"], answers, rows, wanted, strict=True
        ):
            length = row["input_ids"].shape[1]
            assert torch.equal(ids[width - length :], row["input_ids"][0])
            assert mask.tolist() == [0] * (width - length) + [1] * length
            assert processor.decode(answer[answer != -100]) == f"{text}</s>"
        for name in ("pixel_values", "crop_positions"):
            seen = [torch.as_tensor(row[name]) for row in rows if name in row]
            assert (name in asked) == bool(seen)
            assert not seen or torch.equal(asked[name], torch.cat(seen))


@pytest.fixture
def talkative(llama):
    """A model of one's own, since what ends its answers is changed."""
    model = MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint).eval()
    model.generation_config.max_new_tokens = NEW_TOKENS
    return model


@pytest.mark.parametrize("size", [1, 2, 3])
def test_predictions_are_the_answers_of_one_at_a_time(talkative, llama_processor, images, size, tmp_path):
    """Greedily, ids for ids, in batches of which the last is smaller; labels are the answers, the loss is Trainer's."""
    chats = [chat(parts, images) for parts in CHATS.values()]
    rows = [{"messages": messages} for messages in chats]
    alone, wanted = zip(*(asked_alone(llama_processor, messages) for messages in chats), strict=True)
    with torch.no_grad():
        free = [talkative.generate(**row)[0, row["input_ids"].shape[1] :].tolist() for row in alone]
    ends = [2, free[0][3], free[2][6]]
    talkative.generation_config.eos_token_id = ends
    with torch.no_grad():
        expected = [talkative.generate(**row)[0, row["input_ids"].shape[1] :].tolist() for row in alone]
    assert len({len(ids) for ids in expected}) > 2
    given = {"eval_dataset": rows, "data_collator": ConversationCollator(llama_processor)}
    options = arguments(tmp_path, per_device_eval_batch_size=size)
    trainer = OwlSeq2SeqTrainer(talkative, options, processing_class=llama_processor, **given)
    settings = talkative.generation_config.to_dict()
    found = trainer.predict(rows)
    assert talkative.generation_config.to_dict() == settings
    assert [ids_of(llama_processor, row) for row in found.predictions] == [
        ids_of(llama_processor, row) for row in expected
    ]
    labels = [llama_processor.decode([token for token in row if token != -100]) for row in found.label_ids]
    assert labels == [f"{text}</s>" for text in wanted]
    assert found.metrics["test_loss"] == Trainer(talkative, options, **given).evaluate()["eval_loss"]


def test_an_evaluation_while_it_trains_scores_what_was_learned(llama, llama_processor, files, tmp_path):
    """From none to all of the answers, in numbers of the metric that the library keeps the best model by."""
    torch.manual_seed(0)
    model = prepare_stage(MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint), "instruct-full")
    model.generation_config.max_new_tokens = NEW_TOKENS
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    rows = [
        {"messages": chat([{}, "What colour?", name], [PIL.Image.new("RGB", (20, 20), colour)])}
        for name, colour in colours.items()
    ]
    rows.append({"messages": chat(["Which animal?", "an owl"], [])})

    def share_right(evaluated):
        written, wanted = (
            [llama_processor.decode([token for token in row if token != -100], skip_special_tokens=True) for row in ids]
            for ids in (evaluated.predictions, evaluated.label_ids)
        )
        assert wanted == ["red", "blue", "an owl"]
        return {"exact_match": sum(a == b for a, b in zip(written, wanted, strict=True)) / len(wanted)}

    options = arguments(
        tmp_path, max_steps=40, learning_rate=1e-2, lr_scheduler_type="constant", per_device_train_batch_size=3,
        per_device_eval_batch_size=2, eval_strategy="steps", eval_steps=40, eval_on_start=True,
    )  # fmt: skip
    trainer = OwlSeq2SeqTrainer(
        model, options, data_collator=ConversationCollator(llama_processor), train_dataset=rows, eval_dataset=rows,
        compute_metrics=share_right,
    )  # fmt: skip
    trainer.train()
    scores = [entry["eval_exact_match"] for entry in trainer.state.log_history if "eval_exact_match" in entry]
    assert scores == [0, 1]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({"data_collator": list}, {}, "`data_collator` is a type, but must be a ConversationCollator"),
        ({"packed_length": 256}, {}, "leave out the collator's `packed_length`"),
        ({}, {"generation_max_length": 20}, "`generation_max_length` is 20, .* set `max_new_tokens`"),
    ],
)
def test_what_would_give_other_answers_is_refused(llama_model, llama_processor, tmp_path, values, options, message):
    collator = values.get("data_collator") or ConversationCollator(llama_processor, **values)
    with pytest.raises(ValueError, match=message):
        OwlSeq2SeqTrainer(llama_model, arguments(tmp_path, **options), data_collator=collator)
    OwlSeq2SeqTrainer(llama_model, arguments(tmp_path, predict_with_generate=False, **options), data_collator=collator)


def test_the_librarys_own_seq2seq_trainer_does_not_read_out_the_answers(llama_model, llama_processor, tmp_path):
    """It would generate after them: `generate` refuses labels, and names what does it right."""
    rows = [{"messages": chat(CHATS["no image"], [])}]
    trainer = Seq2SeqTrainer(
        llama_model, arguments(tmp_path), data_collator=ConversationCollator(llama_processor), eval_dataset=rows,
        compute_metrics=lambda evaluated: {},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"hold the answers.*OwlSeq2SeqTrainer"):
        trainer.evaluate()
