"""A chat continues from its cache: only the new turn is read, old images are never looked at again."""

import functools
import threading

import pytest
import torch
from conftest import SYSTEM, relative_error
from torch._dynamo.utils import counters
from transformers import StaticCache, StoppingCriteria, TextIteratorStreamer

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.inference import Chat, score_answers
from transformers_owl.training import prepare_stage


@pytest.fixture
def model(llama):
    return MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)


def record_calls(model):
    """Images of every pass of the vision model, and new positions of every pass of the language model."""
    seen, read = [], []
    model.model.vision_model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    model.model.language_model.register_forward_hook(
        lambda module, args, kwargs, output: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    return seen, read


def talk(chat, images):
    return [
        chat.ask("What is it?", [images[0]], max_new_tokens=5),
        chat.ask("And now?", max_new_tokens=4),
        chat.ask("Compare.", [images[1], images[2]], max_new_tokens=5),
        chat.ask("A longer question, with more words than before?", max_new_tokens=6),
    ]


def test_each_image_is_seen_once_and_each_token_read_once(model, llama_processor, images):
    seen, read = record_calls(model)
    chat = Chat(model, llama_processor)
    talk(chat, images)
    assert seen == [1, 2]
    assert sum(read) == chat.ids.shape[1] - 1
    assert (chat.ids == llama_processor.image_token_id).sum() == 3 * 65


def test_cached_logits_equal_those_of_the_whole_conversation(model, llama_processor, images):
    chat = Chat(model, llama_processor)
    talk(chat, images)
    pixels = llama_processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        whole = model(input_ids=chat.ids, pixel_values=pixels).logits[:, -1]
        last = model(input_ids=chat.ids[:, -1:], past_key_values=chat.cache).logits[:, -1]
    assert relative_error(last, whole) <= 1e-5


def test_turns_follow_each_other_as_in_training(model, llama_processor, images):
    """Every answer is followed by the new question alone; the system sentence and BOS stand once, in front."""
    chat = Chat(model, llama_processor)
    answers = talk(chat, images)
    ids = chat.ids[0].tolist()
    assert ids.count(1) == 1
    text = llama_processor.decode(ids, skip_special_tokens=True)
    assert text.count(SYSTEM) == 1
    tokenizer = llama_processor.tokenizer
    question = tokenizer("\nHuman: And now?\nAI: ", add_special_tokens=False)["input_ids"]
    assert any(ids[at : at + len(question)] == question for at in range(len(ids)))
    assert [message["content"] for message in chat.messages[1::2]] == answers


def test_another_system_sentence(model, llama_processor):
    chat = Chat(model, llama_processor, system="Be brief.")
    chat.ask("Hi", max_new_tokens=1)
    assert llama_processor.decode(chat.ids[0, :-1]).startswith("<s> Be brief.\nHuman: Hi\nAI:")


def test_a_static_cache_writes_the_same_and_its_decoding_step_compiles_once(model, llama_processor, images):
    """No graph break (fullgraph), and one graph for all turns, whatever their length."""
    expected = talk(Chat(model, llama_processor), images)
    torch._dynamo.reset()
    counters.clear()
    forward = model.forward
    compiled = torch.compile(forward, backend="eager", fullgraph=True, dynamic=False)

    @functools.wraps(forward)
    def decode_compiled(**kwargs):
        return (compiled if kwargs["input_ids"].shape[1] == 1 else forward)(**kwargs)

    model.forward = decode_compiled
    chat = Chat(model, llama_processor, cache=StaticCache(config=model.config.text_config, max_cache_len=512))
    assert talk(chat, images) == expected
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["recompiles"]


def test_streaming_gives_the_answer_piece_by_piece(model, llama_processor, images):
    expected = talk(Chat(model, llama_processor), images)
    chat = Chat(model, llama_processor)
    pieces = list(chat.stream("What is it?", [images[0]], max_new_tokens=5))
    assert "".join(pieces) == expected[0] == chat.messages[-1]["content"]
    assert len(pieces) > 1
    assert chat.ask("And now?", max_new_tokens=4) == expected[1]


def test_a_text_iterator_streamer_of_the_library(model, llama_processor, images):
    streamer = TextIteratorStreamer(llama_processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = llama_processor(text="Hi <image>", images=images[0], return_tensors="pt")
    thread = threading.Thread(target=model.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 6})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    written = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    assert streamed == llama_processor.decode(written, skip_special_tokens=True)


def test_closing_a_stream_stops_the_answer_and_the_chat_goes_on(model, llama_processor):
    chat = Chat(model, llama_processor)
    stream = chat.stream("Tell me everything.", max_new_tokens=400)
    next(stream)
    stream.close()
    assert chat.ids.shape[1] < 300
    assert chat.messages[-1]["role"] == "assistant"
    assert chat.ask("Go on", max_new_tokens=2) == chat.messages[-1]["content"]


class Interrupt(StoppingCriteria):
    def __call__(self, *args, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize("static", [False, True])
def test_an_interrupted_turn_leaves_the_chat_as_it_was(model, llama_processor, images, static):
    expected = talk(Chat(model, llama_processor), images)
    cache = StaticCache(config=model.config.text_config, max_cache_len=512) if static else None
    chat = Chat(model, llama_processor, cache=cache)
    assert chat.ask("What is it?", [images[0]], max_new_tokens=5) == expected[0]
    with pytest.raises(KeyboardInterrupt):
        chat.ask("Look at these", [images[1]], max_new_tokens=5, stopping_criteria=[Interrupt()])
    assert len(chat.messages) == 2
    assert chat.ask("And now?", max_new_tokens=4) == expected[1]


def test_beams_read_anew_and_the_cache_goes_on_behind_them(model, llama_processor, images):
    """A turn by beams gives what `generate` gives on the whole text, and the next one reads it with its image."""
    chat = Chat(model, llama_processor)
    chat.ask("What is it?", [images[0]], max_new_tokens=5)
    before = chat.ids
    chat.ask("And this?", [images[1]], num_beams=3, max_new_tokens=6)
    last = chat.ids[0].tolist()[::-1].index(llama_processor.image_token_id)
    question = llama_processor.tokenizer("\nHuman: And this?\nAI: ", add_special_tokens=False)["input_ids"]
    ids, pixels = chat.ids[:, : chat.ids.shape[1] - last + len(question)], torch.stack(chat.pixels["pixel_values"])
    assert ids[0, -len(question) :].tolist() == question
    assert (ids[:, : before.shape[1]] == before).all()
    whole = model.generate(input_ids=ids, pixel_values=pixels, num_beams=3, max_new_tokens=6)
    assert (whole == chat.ids).all()
    assert len(list(Chat(model, llama_processor).stream("Hi", num_beams=2, max_new_tokens=3))) == 1
    seen, _ = record_calls(model)
    chat.ask("So?", max_new_tokens=4)
    assert seen == [1]
    with torch.no_grad():
        expected = model(input_ids=chat.ids, pixel_values=pixels).logits[:, -1]
        last = model(input_ids=chat.ids[:, -1:], past_key_values=chat.cache).logits[:, -1]
    assert relative_error(last, expected) <= 1e-5


def test_a_history_is_read_with_the_first_turn(model, llama_processor, images):
    content = [{"type": "image", "image": images[0]}, {"type": "text", "text": "What is it?"}]
    history = [{"role": "user", "content": content}, {"role": "assistant", "content": "It is red."}]
    chat = Chat(model, llama_processor, history=history)
    answer = chat.ask("And this?", [images[1]], max_new_tokens=5)
    content = [{"type": "image", "image": images[1]}, {"type": "text", "text": "And this?"}]
    inputs = llama_processor.apply_chat_template(
        [*history, {"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    written = model.generate(**inputs, max_new_tokens=5)
    assert (chat.ids == written).all()
    assert chat.messages[-1] == {"role": "assistant", "content": answer}
    assert chat.messages[:2] == history


def test_stop_ends_a_stream_from_another_thread(model, llama_processor):
    chat = Chat(model, llama_processor)
    stream = chat.stream("Tell me everything.", max_new_tokens=400)
    pieces = [next(stream)]
    threading.Thread(target=chat.stop).start()
    pieces += stream
    assert chat.ids.shape[1] < 300
    assert chat.messages[-1]["content"] == "".join(pieces)


def test_mistakes_are_named(model, llama_processor):
    chat = Chat(model, llama_processor)
    with pytest.raises(ValueError, match="num_return_sequences must be 1"):
        chat.ask("Hi", num_beams=2, num_return_sequences=2)
    with pytest.raises(ValueError, match=r"no-such.png' cannot be read"):
        list(chat.stream("Hi", ["no-such.png"]))
    with pytest.raises(ValueError, match=r"conversation has .* positions.*context length is 2048"):
        chat.ask("word " * 2100)
    assert chat.messages == []


def test_a_peft_model_is_good_wherever_a_model_is(model, llama_processor, images):
    expected = talk(Chat(model, llama_processor), images)
    adapted = prepare_stage(model, "instruct").eval()  # fresh LoRA changes nothing
    assert talk(Chat(adapted, llama_processor), images) == expected
    chat = [{"role": "user", "content": "Hi"}]
    score = score_answers(adapted, llama_processor, [chat], [["yes"]])
    assert score == score_answers(adapted.get_base_model(), llama_processor, [chat], [["yes"]])
