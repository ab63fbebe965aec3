"""Whatever is thrown at the processor and the model: a sound result, or an error that says what was wrong."""

import base64
import io
import random
import warnings
from collections import Counter
from datetime import timedelta

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlImageToTextPipeline
from transformers_owl.inference import Chat
from transformers_owl.mplug_owl.processing_mplug_owl import CALL_ARGUMENTS


POSITIONS = 65  # of an image
RED = PIL.Image.new("RGB", (5, 4), "red")
ODD = [None, True, -1, 0, 3, 2.5, float("nan"), "", "x", b"x", (), [], {}, [None], {"a": 1}, object, 10**30]
odd = st.sampled_from(ODD)


# Images: of every mode and size, damaged files, arrays of every kind, and what is no image.

MODES = [
    "1", "L", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "LA", "La", "I", "F", "I;16",
    "I;16L", "I;16B", "I;16N",
]  # fmt: skip
SIZES = [(1, 1), (1, 3000), (3000, 1), (2, 3), (33, 17), (0, 0), (0, 4), (4, 0)]
FORMATS = {"PNG": "RGBA", "JPEG": "RGB", "GIF": "P", "WEBP": "RGB", "TIFF": "CMYK", "BMP": "L", "ICO": "RGBA"}


def pil_image(mode, size, seed, info, closed):
    image = PIL.Image.new(mode, size)
    if mode not in ("La", "I;16N"):
        image.frombytes(random.Random(seed).randbytes(len(image.tobytes())))
    image.info.update(info)
    if closed:
        image.close()
    return image


def damaged_file(file_format, seed, damages) -> bytes:
    rng = random.Random(seed)
    values = np.random.default_rng(seed).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(values).convert(FORMATS[file_format]).save(file, file_format)
    content = bytearray(file.getvalue())
    for damage in damages:
        start = rng.randrange(min(len(content), rng.choice([40, 10**6])) or 1)
        if damage == "cut":
            del content[start:]
        elif damage == "flip":
            content[start : start + 1] = bytes([rng.randrange(256)])
        elif damage == "drop":
            del content[start : start + 3]
    return bytes(content)


def as_given(content: bytes, way: str):
    """Bytes as a user may pass them: opened by PIL where it can, as base64, or as they are."""
    if way == "bytes":
        return content
    if way == "data URL":
        return "data:image/png;base64," + base64.b64encode(content).decode()
    try:
        return PIL.Image.open(io.BytesIO(content))
    except (OSError, PIL.Image.DecompressionBombError):
        return base64.b64encode(content).decode() + "=" * 200


def array(dtype, shape, value, seed):
    values = np.random.default_rng(seed).random(shape) * value
    with np.errstate(all="ignore"):
        return values.astype(dtype)


def tensor(dtype, shape, value, device):
    return torch.full(shape, value).to(dtype).to(device)


shapes = st.sampled_from(
    [(), (3,), (0, 0), (5, 6), (3, 5, 6), (5, 6, 3), (1, 5, 6), (5, 6, 1), (5, 6, 4), (5, 6, 2), (0, 6, 3), (3, 3, 3),
     (3, 0, 6), (3, 1, 2000), (2, 3, 5, 6), (0, 3, 5, 6), (2, 5, 6, 3), (1, 1, 3, 5, 6), (7, 7, 7)]
)  # fmt: skip
values = st.sampled_from([0.0, 1.0, 0.5, 255.0, 256.0, -1.0, 1e30, float("nan"), float("inf")])
seeds = st.integers(0, 999)
infos = st.sampled_from([
    {}, {}, {}, {"transparency": 0}, {"transparency": b"\0\1"}, {"transparency": (1, 2, 3)}, {"transparency": "x"},
    {"transparency": 10**6}, {"transparency": None}, {"exif": b"Exif\0\0garbage"}, {"exif": 5}, {"icc_profile": b"x"},
])  # fmt: skip
good_images = st.builds(
    pil_image, st.sampled_from(MODES), st.sampled_from(SIZES[:5]), seeds, st.just({}), st.just(False)
)
odd_images = st.one_of(
    st.builds(pil_image, st.sampled_from(MODES), st.sampled_from(SIZES), seeds, infos, st.booleans()),
    st.builds(
        as_given,
        st.builds(
            damaged_file,
            st.sampled_from(list(FORMATS)),
            seeds,
            st.lists(st.sampled_from(["cut", "flip", "drop"]), max_size=3),
        ),
        st.sampled_from(["bytes", "data URL", "opened"]),
    ),
    st.builds(
        array,
        st.sampled_from(["?", "u1", "i1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", "g", "c8", "U3", "O", "M8[s]"]),
        shapes,
        values,
        seeds,
    ),
    st.builds(
        tensor,
        st.sampled_from([torch.uint8, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64]),
        shapes,
        values,
        st.sampled_from(["cpu", "cpu", "cpu", "meta"]),
    ),
    st.sampled_from(
        ["", "no.png", "/", "/dev/zero", "a\0b", "\ud800", "x" * 5000, "data:image/png;base64,", "http://"]
    ),
    odd,
)
images = st.one_of(good_images, good_images, odd_images)
image_arguments = st.one_of(
    images,
    st.lists(images, max_size=3),
    st.lists(st.lists(images, max_size=2), max_size=3),
    st.lists(st.one_of(images, st.lists(images, max_size=2)).map(lambda entry: [entry]), max_size=2),
)

# Texts: any script, placeholders, special tokens, characters that are none.

pieces = st.one_of(
    st.sampled_from(
        ["<image>", "<image>", "<image>", "<|video|>", "</s>", "<s>", "<unk>", "<ima", "ge>", "\ufdd0", "\ufdd1", "\0",
         "\ud800", "\udfff", "\U0010ffff", "<\ufdd0image>", "\nHuman: ", "\nAI: ", " ", "\u2581", "\u202e", "x" * 3000,
         "\U0001f989" * 500, "{{ messages }}", "{% raw %}"]
    ),
    st.text(max_size=20),
)  # fmt: skip
texts = st.lists(pieces, max_size=6).map("".join)
text_arguments = st.one_of(texts, st.lists(texts, max_size=3), st.lists(st.one_of(texts, odd), max_size=3), odd)

# Arguments of the processor: known names with values that fit or not, and misspelt names.

ARGUMENTS = {
    "padding": [True, False, "longest", "max_length", "do_not_pad"],
    "truncation": [True, False, "longest_first", "only_first", "only_second"],
    "max_length": [0, 1, 5, 100, 10**12],
    "return_tensors": ["pt", "np", "tf"],
    "padding_side": ["left", "right", "middle"],
    "pad_to_multiple_of": [0, 1, 8, -8, 10**12],
    "size": [{"height": 8, "width": 9}, {"height": 0, "width": 3}, {"shortest_edge": 30}, 12, 10**6, {"height": "a"}],
    "resample": [0, 3, 9],
    "do_resize": [True, False],
    "do_rescale": [False],
    "do_center_crop": [True],
    "crop_size": [{"height": 8, "width": 8}],
    "pad_size": [{"height": 90, "width": 90}],
    "rescale_factor": [0, float("inf"), 1e300],
    "image_mean": [[0.5, 0.5, 0.5], [0.5], 0.5],
    "image_std": [[0, 0, 0], [0.5, 0.5, 0.5]],
    "do_pad": [True],
    "input_data_format": ["channels_first", "nowhere"],
    "add_special_tokens": [False],
    "text_kwargs": [{"padding": "max_length", "max_length": 300}, {"pading": True}],
    "images_kwargs": [{"size": {"height": 8, "width": 8}}, {"sise": 1}],
    "common_kwargs": [{"return_tensors": "pt"}],
    "stride": [1, 100],
    "text_pair": ["<image>"],
    "text_target": ["a"],
}
names = st.one_of(
    st.sampled_from([*ARGUMENTS]),
    st.sampled_from(sorted(CALL_ARGUMENTS)),
    st.sampled_from(["pading", "image", ""]),
)


@st.composite
def call_arguments(draw):
    chosen = draw(st.lists(names, max_size=3))
    return {name: draw(st.one_of(st.sampled_from(ARGUMENTS.get(name, [True])), odd)) for name in chosen}


@st.composite
def matching_calls(draw):
    """As many images as the text has placeholders, so that most calls come to a result."""
    text = draw(st.one_of(texts, st.lists(texts, min_size=1, max_size=3)))
    count = "".join(text).count("<image>")
    shown = draw(st.lists(images, min_size=count, max_size=count))
    return {"text": text, "images": shown or None}


calls = st.one_of(
    matching_calls(),
    st.fixed_dictionaries({"text": text_arguments, "images": image_arguments}),
    st.builds(lambda call, more: {**call, **more}, matching_calls(), call_arguments()),
)

# Chats: good ones, and odd forms.

sources = st.sampled_from(["image", "url", "path", "base64", "source"])
text_parts = st.builds(lambda text: {"type": "text", "text": text}, texts)
good_parts = st.one_of(text_parts, st.builds(lambda image: {"type": "image", "image": image}, good_images))
odd_parts = st.one_of(
    st.builds(lambda name, image: {"type": "image", name: image}, sources, images),
    st.builds(lambda url: {"type": "image_url", "image_url": url}, st.one_of(odd, images)),
    st.builds(lambda kind, name, value: {"type": kind, name: value}, st.one_of(st.just("video"), odd), sources, odd),
    st.sampled_from([
        {"type": "image"}, {"type": "text"}, {"text": "Hi"}, {"type": "audio", "url": "http://127.0.0.1/"},
        {"type": "image", "image": RED, "url": "a.png"}, {"type": "image", "image": None},
        {"type": "video", "url": "x"},
    ]),
    odd,
)  # fmt: skip
good_messages = st.one_of(
    st.builds(lambda parts: {"role": "user", "content": parts}, st.lists(good_parts, min_size=1, max_size=3)),
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "assistant"]), texts),
)
odd_messages = st.one_of(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "user", "assistant", "system", "tool", "", None, 5]),
        st.one_of(texts, st.lists(st.one_of(good_parts, odd_parts), max_size=3), odd),
    ),
    st.sampled_from([{}, {"role": "user"}, {"content": "a"}, {"role": "user", "text": "a"}, "Hi", None, ["Hi"]]),
)
good_chats = st.lists(good_messages, min_size=1, max_size=4)
odd_chats = st.lists(st.one_of(good_messages, odd_messages), max_size=4)
conversations = st.one_of(
    good_chats, st.lists(good_chats, min_size=1, max_size=3), odd_chats, st.lists(odd_chats, max_size=3), odd
)
TEMPLATE_ARGUMENTS = {
    "add_generation_prompt": [True, False],
    "add_generation_promt": [True],
    "continue_final_message": [True, "content", "role"],
    "return_assistant_tokens_mask": [True],
    "chat_template": ["{{ messages }}", "{% for %}", "{{ messages[0].a.b }}", "default"],
    "processor_kwargs": [{"padding": False}, {"text": "a"}, {"pading": 1}, {"images": [RED]}],
    "tools": [[{"type": "function"}]],
    "documents": [[{"title": "a", "text": "b"}], ["a"]],
    "load_audio_from_video": [True],
    "sanitize_control_tokens": [True],
    "truncation": [True],
    "text": ["a"],
}


@st.composite
def chats(draw):
    options = {"tokenize": draw(st.booleans()), "return_dict": True, "return_tensors": "pt"}
    for name in draw(st.lists(st.sampled_from([*TEMPLATE_ARGUMENTS, "return_dict", "return_tensors"]), max_size=2)):
        options[name] = draw(st.one_of(st.sampled_from(TEMPLATE_ARGUMENTS.get(name, [True])), odd))
    return {"conversation": draw(conversations), **options}


# Inputs of the model: some that work, with up to three things in them replaced.

INTEGERS = [torch.int64, torch.int64, torch.int32, torch.float32, torch.bool, torch.uint8, torch.float16]
SHAPES = [(2, 14), (2, 14), (1, 14), (2, 13), (2, 15), (3, 14), (2, 0), (0, 14), (14,), (2, 14, 1), (2, 1, 14, 14), ()]
PIXEL_SHAPES = [
    (2, 3, 28, 28), (2, 3, 28, 28), (1, 3, 28, 28), (3, 28, 28), (2, 1, 28, 28), (2, 3, 27, 28), (0, 3, 28, 28),
    (2, 28, 28, 3), (1, 2, 3, 28, 28), (2, 0, 3, 28, 28), (2, 1, 3, 28, 28), (28, 28), (),
]  # fmt: skip


def whole_numbers(dtype, shape, low, high):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def real_numbers(dtype, shape, scale):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)


def input_ids() -> torch.Tensor:
    return whole_numbers(torch.int64, (2, 14), 3, 90).index_fill(1, torch.arange(3, 8), 100)


odd_tokens = st.builds(
    whole_numbers,
    st.sampled_from(INTEGERS),
    st.sampled_from(SHAPES),
    st.sampled_from([0, 0, -1, -100]),
    st.sampled_from([0, 1, 13, 99, 100, 5000]),
)
odd_pixels = st.builds(
    real_numbers,
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.uint8, torch.complex64]),
    st.sampled_from(PIXEL_SHAPES),
    st.sampled_from([1.0, 100.0, float("nan")]),
)
embeddings = st.builds(
    real_numbers,
    st.just(torch.float32),
    st.sampled_from([(2, 14, 32), (2, 14, 31), (14, 32), (2, 0, 32)]),
    st.just(1.0),
)
masks = st.sampled_from([torch.ones(2, 14, dtype=dtype) for dtype in (torch.int64, torch.bool, torch.float32)])
REPLACEMENTS = {
    "input_ids": st.one_of(odd_tokens, st.none()),
    "attention_mask": st.one_of(
        masks, st.sampled_from([torch.zeros(2, 14).long(), {"full_attention": None}]), odd_tokens
    ),
    "position_ids": st.one_of(st.sampled_from([torch.arange(14)[None], torch.arange(28).view(2, 14)]), odd_tokens),
    "labels": st.one_of(st.builds(input_ids), st.just(torch.full((2, 14), -100)), odd_tokens),
    "inputs_embeds": embeddings,
    "pixel_values": st.one_of(odd_pixels, st.none()),
    "pixel_values_videos": odd_pixels,
    "logits_to_keep": st.sampled_from(
        [0, 1, 14, 15, -1, torch.tensor([0, 2]), torch.tensor([99]), torch.ones(2, 14).bool(), torch.ones(3)]
    ),
}


@st.composite
def model_inputs(draw):
    inputs = {"input_ids": input_ids(), "pixel_values": real_numbers(torch.float32, (2, 3, 28, 28), 1.0)}
    for name in draw(st.lists(st.sampled_from([*REPLACEMENTS]), max_size=3)):
        strategy = REPLACEMENTS[name]
        inputs[name] = draw(st.one_of(strategy, strategy, strategy, odd))
    if inputs["input_ids"] is None:
        inputs.setdefault("inputs_embeds", draw(embeddings))
    return inputs


# Clips: lists of images, and arrays of frames.

good_clips = st.one_of(
    st.lists(good_images, min_size=1, max_size=5),
    st.builds(array, st.just("u1"), st.sampled_from([(1, 5, 6, 3), (4, 5, 6, 3), (9, 3, 5, 6)]), st.just(255.0), seeds),
)
odd_clips = st.one_of(st.lists(images, max_size=4), odd_images, st.sampled_from([b"x", "no.mp4", [[RED]]]), odd)


@st.composite
def video_calls(draw):
    clips = draw(st.lists(st.one_of(good_clips, good_clips, odd_clips), max_size=2))
    text = draw(st.lists(pieces.filter(lambda piece: "<" not in piece), max_size=3).map("".join))
    count = draw(st.sampled_from([len(clips), len(clips), len(clips), 0, 3]))
    options = {} if draw(st.booleans()) else {"num_frames": draw(st.one_of(st.sampled_from([1, 2, 4, 7]), odd))}
    return {"text": text + "<|video|>" * count, "videos": clips or None, **options}


# What `generate` may be asked for.

OPTIONS = {
    "max_new_tokens": [1, 3], "do_sample": [True, False], "temperature": [0.7, 0.0, -1.0, float("nan")],
    "top_k": [1, 5, 0, -1], "top_p": [0.5, 0.0, 1.5], "num_beams": [1, 2, 0], "num_return_sequences": [1, 2, 3],
    "repetition_penalty": [1.2, 0.0], "no_repeat_ngram_size": [2, -1], "min_new_tokens": [1, 9],
    "bad_words_ids": [[[5]], [[100]], [[5000]], []], "eos_token_id": [2, [2, 5], 5000, -1], "pad_token_id": [0, 5000],
    "prompt_lookup_num_tokens": [3], "encoder_repetition_penalty": [1.5], "use_cache": [False],
    "cache_implementation": ["static", "nothing"], "sequence_bias": [{(5,): 1.0}, {(100,): 9.0}], "max_length": [16, 3],
    "suppress_tokens": [[5], [5000]], "forced_eos_token_id": [2, 100], "guidance_scale": [1.5],
}  # fmt: skip


# `generate` would write that many tokens.
odd_options = odd.filter(lambda value: value != 10**30)


@st.composite
def questions(draw):
    inputs = draw(st.one_of(st.just({}), st.just({}), model_inputs()))
    inputs = inputs or {"input_ids": input_ids(), "pixel_values": real_numbers(torch.float32, (2, 3, 28, 28), 1.0)}
    names = draw(st.lists(st.sampled_from([*OPTIONS]), max_size=3))
    fitting = {name: st.sampled_from(OPTIONS[name]) for name in names}
    return {
        "max_new_tokens": 2,
        **inputs,
        **{name: draw(st.one_of(way, way, way, odd_options)) for name, way in fitting.items()},
    }


# What must hold.


ANSWERED: Counter = Counter()


def result_or_error(call, **kwargs):
    """What a call gives, or None after an error that says something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = call(**kwargs)
        except Exception as error:
            assert len(repr(error).split()) >= 4 or isinstance(error, KeyError), f"What does {error!r} tell?"
            ANSWERED[False] += 1
            return None
        ANSWERED[True] += 1
        return result


def flat(values) -> list:
    values = values.tolist() if isinstance(values, (np.ndarray, torch.Tensor)) else values
    return [leaf for value in values for leaf in flat(value)] if isinstance(values, (list, tuple)) else [values]


def assert_every_image_has_its_positions(processor, inputs, images_given: int):
    ids = flat(inputs["input_ids"])
    assert len(inputs.get("pixel_values", [])) == images_given
    assert ids.count(processor.image_token_id) == images_given * POSITIONS
    assert ids.count(processor.video_token_id) == 0


def check_call(processor, model, call):
    inputs = result_or_error(processor, **call)
    if inputs is not None and call["text"] is not None:
        rows = [call["text"]] if isinstance(call["text"], str) else call["text"]
        assert len(inputs["input_ids"]) == len(rows)
        assert_every_image_has_its_positions(processor, inputs, "\n".join(rows).count("<image>"))
    if inputs is not None and set(call) == {"text", "images"}:
        assert np.isfinite(flat(inputs.get("pixel_values", []))).all()
        if call["text"] is not None:
            check_model(processor, model, processor(**call, return_tensors="pt"))


def check_chat(processor, model, chat):
    result = result_or_error(processor.apply_chat_template, **chat)
    if result is None:
        return
    chats = chat["conversation"] if isinstance(chat["conversation"][0], (list, tuple)) else [chat["conversation"]]
    contents = [message["content"] for messages in chats for message in messages]
    parts = [part for content in contents if not isinstance(content, str) for part in content]
    images_given = sum(part["type"] in ("image", "image_url") for part in parts)
    if chat["tokenize"] and chat["return_dict"] is True:
        assert_every_image_has_its_positions(processor, result, images_given)
    elif not chat["tokenize"] and not chat.get("chat_template"):
        prompts = result if chats is chat["conversation"] else [result]
        assert "".join(prompts).count("<image>") == images_given


def check_model(processor, model, inputs):
    with torch.no_grad():
        output = result_or_error(model, **inputs)
    if output is None:
        return
    media = [inputs[name] for name in ("pixel_values", "inputs_embeds") if inputs.get(name) is not None]
    if all(values.isfinite().all() for values in media):
        assert output.logits.isfinite().all()
        if output.loss is not None and ((inputs["labels"] >= 0) & (inputs["labels"] < 100))[:, 1:].any():
            assert output.loss.isfinite()


def check_video_call(processor, model, call):
    inputs = result_or_error(processor, **call)
    if inputs is not None:
        clips = call["videos"] or []
        assert flat(inputs["input_ids"]).count(processor.video_token_id) == POSITIONS * len(clips)
        assert len(inputs.get("pixel_values_videos", [])) == len(clips)
        assert np.isfinite(flat(inputs.get("pixel_values_videos", []))).all()


def check_answers(processor, model, question):
    written = result_or_error(model.generate, **question)
    prompt = question.get("input_ids")
    if isinstance(written, torch.Tensor) and isinstance(prompt, torch.Tensor):
        assert torch.equal(written[:, : prompt.shape[1]], prompt.repeat_interleave(len(written) // len(prompt), 0))
        new = written[:, prompt.shape[1] :]
        assert not torch.isin(new, torch.tensor([model.config.image_token_id, model.config.video_token_id])).any()


def check_pipeline(processor, model, call):
    describe = MplugOwlImageToTextPipeline(model=model, processor=processor, device="cpu")
    answers = result_or_error(describe, **call, max_new_tokens=1)
    images = call["images"]
    if answers is not None and isinstance(images, list):
        assert len(answers) == len(images)
    if answers is not None:
        assert all(isinstance(row["generated_text"], str) for row in flat(answers))


def check_turns(processor, model, turns):
    """A turn that fails leaves the chat as it was; what it holds is what it was shown."""
    chat = Chat(model, processor)
    for text, images in turns:
        before = list(chat.messages)
        answer = result_or_error(chat.ask, text=text, images=images, max_new_tokens=2)
        assert len(chat.messages) == len(before) + 2 * (answer is not None)
        assert (chat.ids == processor.image_token_id).sum() == POSITIONS * len(chat.pixels["pixel_values"])
    assert isinstance(chat.ask("Go on", max_new_tokens=1), str)


@pytest.fixture(scope="module")
def tiny_model():
    """Sees images of 28 x 28 pixels as five positions of id 100."""
    torch.manual_seed(0)
    return MplugOwlForConditionalGeneration(tiny_config()).eval()


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["same", "new"])
def try_many(request, llama_processor):
    """
    Checks many examples: always the same ones, so that a failure here is a failure everywhere; or, of the slow tests,
    ten times as many new ones in every run, whose failures Hypothesis keeps in `.hypothesis` and tries again first.
    """

    def trial(strategy, check, model, examples: int) -> None:
        options = {"max_examples": 10 * examples} if request.param else {"max_examples": examples, "database": None}

        @settings(
            derandomize=not request.param,
            deadline=timedelta(seconds=20),
            suppress_health_check=list(HealthCheck),
            **options,
        )
        @given(strategy)
        def holds(example):
            check(llama_processor, model, example)

        ANSWERED.clear()
        holds()
        share = ANSWERED[True] / ANSWERED.total()
        assert share >= 0.1, f"{share:.0%} of what was tried is answered: code that refuses everything proves nothing."

    return trial


def test_calls_of_the_processor(try_many, llama_model):
    try_many(calls, check_call, llama_model, 300)


def test_chats(try_many, llama_model):
    try_many(chats(), check_chat, llama_model, 200)


def test_inputs_of_the_model(try_many, tiny_model):
    try_many(model_inputs(), check_model, tiny_model, 200)


def test_videos_of_the_processor(try_many):
    try_many(video_calls(), check_video_call, None, 100)


def test_answers(try_many, tiny_model):
    try_many(questions(), check_answers, tiny_model, 100)


def test_pipelines(try_many, llama_model):
    calls = st.fixed_dictionaries({"images": st.one_of(images, st.lists(images, max_size=2)), "prompt": texts})
    try_many(calls, check_pipeline, llama_model, 20)


def test_turns_of_a_chat(try_many, llama_model):
    turns = st.lists(st.tuples(texts, st.lists(images, max_size=2)), min_size=1, max_size=3)
    try_many(turns, check_turns, llama_model, 20)
