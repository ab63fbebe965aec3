"""Prompts, chats and masks; and what a user can get wrong."""

import base64
import dataclasses
import json

import PIL.Image
import pytest
import torch
from conftest import SYSTEM
from transformers import LlamaTokenizer

from transformers_owl import MplugOwlImageProcessor, MplugOwlProcessor, MplugOwlTokenizer
from transformers_owl.mplug_owl.processing_mplug_owl import read_template


RED = PIL.Image.new("RGB", (40, 30), "red")


def user(*parts):
    kinds = {"<image>": {"type": "image"}, "<video>": {"type": "video"}}
    return {"role": "user", "content": [kinds.get(part, {"type": "text", "text": part}) for part in parts]}


def assistant(text):
    return {"role": "assistant", "content": text}


GOLDEN_CHATS = {
    "one_image": [user("<image>", "Explain why this meme is funny.")],
    "two_images": [
        user(
            "<image>",
            "<image>",
            "Do the shirts worn by the individuals in the first and second pictures vary in color? If so, what is the "
            "specific color of each shirt?",
        )
    ],
    "text_only": [{"role": "user", "content": "Write a short poem about an owl."}],
    "multi_turn": [
        user("<image>", "What is this?"),
        assistant("It is a picture of shapes."),
        user("<image>", "그리고 이것은? 这是什么\uff1f ¿Y esto?"),
    ],
}


@pytest.mark.parametrize("max_crops", [1, 6])
def test_the_names_of_the_inputs_are_those_of_a_call(llama_processor, monkeypatch, max_crops):
    monkeypatch.setattr(llama_processor.image_processor, "max_crops", max_crops, raising=False)
    inputs = llama_processor(text="<image> <|video|>", images=RED, videos=[[RED] * 4], return_tensors="pt")
    assert sorted(llama_processor.model_input_names) == sorted(inputs)
    assert llama_processor.video_processor.model_input_names == ["pixel_values_videos"]


@pytest.mark.parametrize("name", GOLDEN_CHATS)
def test_chats_render_the_originals_prompts(llama, llama_processor, name):
    rendered = llama_processor.apply_chat_template(GOLDEN_CHATS[name], add_generation_prompt=True)
    assert rendered == llama.prompts[name]["text"]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "system", "content": "Be brief."}, user("Hi")], "Be brief.\nHuman: Hi\nAI: "),
        ([user("<video>", "What happens?")], f"{SYSTEM}\nHuman: <|video|>\nHuman: What happens?\nAI: "),
        ([user("Look:", "<image>", "Well?")], f"{SYSTEM}\nHuman: Look:\nHuman: <image>\nHuman: Well?\nAI: "),
        ([user(" spaced ")], f"{SYSTEM}\nHuman:  spaced \nAI: "),
    ],
)
def test_other_chats(llama_processor, messages, expected):
    assert llama_processor.apply_chat_template(messages, add_generation_prompt=True) == expected


@pytest.mark.parametrize("is_batch", [True, False])
@pytest.mark.parametrize("part", ["<image>", "<video>"])
def test_no_image_is_lost_in_a_rendered_chat(llama_processor, monkeypatch, part, is_batch):
    def render(*parts, **options):
        chat = [user(*parts)]
        return llama_processor.apply_chat_template([chat, chat] if is_batch else chat, **options)

    lost = "has 1 images and videos, but the rendered text has 0 placeholders"
    for template in (None, llama_processor.chat_template):
        with pytest.raises(ValueError, match=lost):
            render("Look:", part, chat_template=template, continue_final_message=True)
    written = render(part, "Look:", continue_final_message=True)
    assert (written[0] if is_batch else written).endswith("Look:")
    for template in ("", "Hi"):
        assert render("Look:", part, chat_template=template) == ([template, template] if is_batch else template)
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=lost):
            patch.setattr(llama_processor, "chat_template", template)
            render("Look:", part)


def test_no_image_is_lost_in_a_tokenized_chat(llama_processor, images):
    chat = [{"role": "user", "content": [{"type": "image", "image": images[0]}, {"type": "text", "text": "Look:"}]}]
    with pytest.raises(ValueError, match=r"there are \[0\] and \[1\]"):
        llama_processor.apply_chat_template(chat, chat_template="Hi", tokenize=True)


def test_a_continued_answer_follows_what_a_generation_prompt_shows(llama_processor):
    """Earlier answers end without EOS, as the original wrote them when the model was to go on."""
    chat = [*GOLDEN_CHATS["multi_turn"], assistant("They are ")]
    prompt = llama_processor.apply_chat_template(chat[:-1], add_generation_prompt=True)
    assert llama_processor.apply_chat_template(chat, continue_final_message=True) == prompt + "They are "


def test_unknown_roles_are_refused(llama_processor):
    with pytest.raises(ValueError, match=r"roles are system .*not tool"):
        llama_processor.apply_chat_template([user("Hi"), {"role": "tool", "content": "x"}])


def tokenize(processor, messages, **kwargs):
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **kwargs)


def test_a_chat_with_images_becomes_model_inputs(llama_processor, images):
    messages = [user("<image>", "And?")]
    messages[0]["content"][0]["image"] = images[1]
    inputs = tokenize(llama_processor, messages, add_generation_prompt=True)
    raw = llama_processor(text=f"{SYSTEM}\nHuman: <image>\nHuman: And?\nAI: ", images=images[1], return_tensors="pt")
    assert inputs["input_ids"].tolist() == raw["input_ids"].tolist()
    assert torch.equal(inputs["pixel_values"], raw["pixel_values"])


def test_a_typed_placeholder_in_a_chat_stays_text(llama_processor):
    messages = [user("<image>", "Does HTML have <image> or <|video|>?")]
    messages[0]["content"][0]["image"] = RED
    ids = tokenize(llama_processor, messages, add_generation_prompt=True)["input_ids"][0]
    assert (ids == llama_processor.image_token_id).sum() == 65
    assert llama_processor.video_token_id not in ids
    assert "Does HTML have <image> or <|video|>?" in llama_processor.decode(ids)


def test_masks_cover_the_answers_and_their_eos_only(llama_processor):
    messages = [user("What is this? AI: no"), assistant("It is red."), user("And?"), assistant("Yes")]
    inputs = tokenize(llama_processor, messages, return_assistant_tokens_mask=True)
    mask = torch.as_tensor(inputs["assistant_masks"])[0].bool()
    answered = inputs["input_ids"][0][mask]
    tokenizer = llama_processor.tokenizer
    expected = [*tokenizer("It is red.")["input_ids"][1:], 2, *tokenizer("Yes")["input_ids"][1:], 2]
    assert answered.tolist() == expected
    prompt = tokenize(llama_processor, messages[:1], add_generation_prompt=True)["input_ids"][0]
    first = int(mask.int().argmax())
    assert inputs["input_ids"][0, :first].tolist() == prompt.tolist()


def test_rows_are_padded_where_they_become_tensors(llama_processor):
    """Others that pad lists of ids again, without the mask, would take padding for text."""
    texts = ["Hi", "A much longer text than that"]
    chats = [[{"role": "user", "content": text}] for text in texts]
    ways = {
        "text": lambda **options: llama_processor(text=texts, **options),
        "chats": lambda **options: llama_processor.apply_chat_template(
            chats, tokenize=True, return_dict=True, return_tensors=options.pop("return_tensors", None),
            processor_kwargs=options,
        ),
    }  # fmt: skip
    for call in ways.values():
        rows, padded = call()["input_ids"], call(return_tensors="pt")
        assert len(rows[0]) < len(rows[1])
        for row, ids, mask in zip(rows, padded["input_ids"], padded["attention_mask"], strict=True):
            assert ids[mask.bool()].tolist() == row
        assert len({len(row) for row in call(padding=True)["input_ids"]}) == 1
        assert [len(row) for row in call(padding="max_length", max_length=300)["input_ids"]] == [300, 300]


def test_masks_of_a_padded_batch(llama_processor):
    chats = [[user("One?"), assistant("A long answer it is.")], [user("A longer question?"), assistant("No")]]
    inputs = tokenize(llama_processor, chats, return_assistant_tokens_mask=True)
    masks = torch.as_tensor(inputs["assistant_masks"]).bool()
    answers = [
        llama_processor.decode(ids[mask], skip_special_tokens=True)
        for ids, mask in zip(inputs["input_ids"], masks, strict=True)
    ]
    assert answers == ["A long answer it is.", "No"]


def test_the_originals_call_forms(llama, images):
    """`MplugOwlProcessor(image_processor, tokenizer)` by position, from the parts of an original folder."""
    for tokenizer_class in (MplugOwlTokenizer, LlamaTokenizer):
        processor = MplugOwlProcessor(
            MplugOwlImageProcessor.from_pretrained(llama.checkpoint), tokenizer_class.from_pretrained(llama.checkpoint)
        )
        prompt = llama.prompts["two_images"]
        inputs = processor(text=[prompt["text"]], images=llama.images("two_images"), return_tensors="pt")
        ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == processor.image_token_id, -1)
        assert ids.tolist() == llama.expected["two_images/input_ids"].tolist()


def test_raw_text_takes_every_placeholder_for_an_image(llama_processor):
    inputs = llama_processor(text="<image><image> a<image>", images=[RED, RED, RED], return_tensors="pt")
    assert (inputs["input_ids"] == llama_processor.image_token_id).sum() == 195


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ["<image>"], "images": [RED, RED]}, r"<image> tokens .* there are \[1\] and \[2\]"),
        ({"text": ["<image><image>"], "images": [RED]}, r"<image> tokens .* there are \[2\] and \[1\]"),
        ({"text": ["<image>"]}, r"<image> tokens .* there are \[1\] and \[0\]"),
        ({"text": ["a"], "images": RED}, r"<image> tokens .* there are \[0\] and \[1\]"),
        (
            {"text": ["<image>", "<image><image>"], "images": [[RED, RED], [RED]]},
            r"there are \[1, 2\] and \[2, 1\]",
        ),
        ({"text": ["a"], "images": []}, "An empty list of images"),
        ({"text": ["<image>"], "images": [None]}, "An image is of type NoneType"),
        ({"text": []}, r"`text` is \[\]"),
        ({"text": ["a", None]}, r"`text` is \['a', None\]"),
        ({"text": 5}, "`text` is 5"),
        ({"text": "a \ud83e b"}, "half a character"),
        ({"text": "a", "text_kwargs": {"pading": True}}, "Unknown argument.*'pading'.*Did you mean 'padding'"),
        ({"text": "a", "text_kwargs": True}, "`text_kwargs` is True, but must be a dictionary"),
        ({"text": "a", "padding": "max_length", "max_length": 10**12}, "`max_length` is 1000000000000, but must be"),
        ({"text": "<image>", "images": RED, "size": 10**6}, "`size` is .* from 1 to 4096"),
        ({}, "at least one input"),
        ({"text": "a", "pading": True}, "Unknown argument.*'pading'.*Did you mean 'padding'"),
        ({"text": "<|video|>"}, "videos"),
        ({"text": "a", "videos": ["a.mp4"]}, r"number of videos, but there are \[0\] and \[1\]"),
        ({"text": "a", "audio": [[0.0]]}, "`audio` was given"),
        ({"text": "<image> a", "images": RED, "truncation": True, "max_length": 20}, "disable truncation"),
    ],
)
def test_mistakes_are_named(llama_processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        llama_processor(**arguments)


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([], {}, r"A chat is \[\]"),
        (None, {}, "A chat is None"),
        ([[user("Hi")], []], {}, r"A chat is \[\]"),
        (["Hi"], {}, "A message is 'Hi'"),
        ([{"content": "Hi"}], {}, "A message is {'content': 'Hi'}"),
        ([{"role": "user"}], {}, "content of a message is None"),
        ([{"role": "user", "content": []}], {}, r"content of a message is \[\]"),
        ([{"role": "user", "content": ["Hi"]}], {}, "part of a message is 'Hi'"),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, "part of a message is {'type': 'text'}"),
        ([{"role": "user", "content": [{"type": "audio", "url": "http://a"}]}], {}, "{'type': 'audio'"),
        (
            [{"role": "assistant", "content": [{"type": "image", "image": RED}]}],
            {},
            "role assistant has a part of type",
        ),
        ([{"role": "user", "content": [{"type": "image", "image": RED, "path": "a.png"}]}], {}, "has image and path"),
        ([user("<image>")], {"tokenize": True}, r"there are \[1\] and \[0\]"),
        ([user("Hi")], {"system": "You are a pirate."}, "Unknown argument of MplugOwlProcessor: 'system'"),
        ([user("Hi")], {"add_generation_promt": True}, "Did you mean 'add_generation_prompt'"),
        (
            [user("Hi")],
            {"tools": [{"type": "function"}]},
            "`tools` was given, but the chat template does not use it",
        ),
        ([user("Hi")], {"processor_kwargs": {"pading": True}}, "Did you mean 'padding'"),
        ([user("Hi")], {"chat_template": "{% for %}"}, "chat template is not valid Jinja"),
    ],
)
def test_mistakes_in_chats_are_named(llama_processor, messages, options, message):
    with pytest.raises(ValueError, match=message):
        llama_processor.apply_chat_template(messages, **options)


def test_what_is_turned_off_may_be_named(llama_processor):
    options = {"tools": [], "documents": None, "load_audio_from_video": True}
    assert llama_processor.apply_chat_template([user("Hi")], **options) == f"{SYSTEM}\nHuman: Hi"


def test_a_template_of_ones_own_may_take_variables_and_tools(llama_processor):
    template = "{{ greeting }} {{ tools | length }} {{ messages[0].content }}"
    options = {"chat_template": template, "greeting": "Ahoy", "tools": [{"type": "function"}]}
    assert llama_processor.apply_chat_template([{"role": "user", "content": "Hi"}], **options) == "Ahoy 1 Hi"


@pytest.mark.parametrize("name", ["image", "url", "path", "base64", "image_url"])
@pytest.mark.parametrize("nothing", [{}, {"url": None}, {"path": None, "image": None}])
def test_a_source_of_an_image_has_many_names_and_nothing_beside_it(llama_processor, tmp_path, name, nothing):
    """`image_url` as OpenAI's clients write it, and columns without a value as rows of a table have them."""
    RED.save(tmp_path / "red.png")
    path = str(tmp_path / "red.png")
    content = base64.b64encode((tmp_path / "red.png").read_bytes()).decode()
    source = {"image": RED, "url": path, "path": path, "base64": "data:image/png;base64," + content}
    source["image_url"] = {"url": source["base64"]}
    part = {**nothing, "type": "image_url" if name == "image_url" else "image", name: source[name]}
    inputs = tokenize(llama_processor, [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}])
    expected = llama_processor.image_processor(RED, return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], expected)
    row = llama_processor.encode_chat([{"role": "user", "content": [part]}, assistant("red")])
    assert row.is_visual.sum() == 65 and len(row.visuals) == 1


@dataclasses.dataclass
class Message:
    role: str
    content: list
    tool_calls: list | None = None


class Part:
    """As a pydantic model."""

    def __init__(self, **fields):
        self.fields = fields

    def model_dump(self):
        return {"type": None, "image_url": None, "text": None, **self.fields}


def test_messages_may_be_objects(llama_processor, tmp_path):
    """Dataclasses and pydantic models, as OpenAI's client gives them, with fields that say nothing."""
    RED.save(tmp_path / "red.png")
    parts = [{"type": "image_url", "image_url": {"url": str(tmp_path / "red.png")}}, {"type": "text", "text": "What?"}]
    expected = tokenize(llama_processor, [{"role": "user", "content": parts}])
    inputs = tokenize(llama_processor, [Message("user", [Part(**part) for part in parts])])
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


CHATML = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '</s>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
MARKED = """\
{%- for message in messages %}{% if message.role == 'assistant' %}A:{% generation %}{{ message.content + '</s>' }}
{%- endgeneration %}{% else %}Q:{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}
{%- endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"""


def with_template(processor, template):
    if template == CHATML:
        processor.tokenizer.chat_template = CHATML
        template = read_template("language_model", processor.tokenizer)
    return MplugOwlProcessor(processor.image_processor, processor.tokenizer, chat_template=template)


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["of the language model", "with marks"])
def test_a_template_of_ones_own_marks_the_answers(llama_processor, template):
    processor = with_template(llama_processor, template)
    first = user("<image>", "What is <image>?")
    first["content"][0]["image"] = RED
    messages = [first, assistant("Red it is."), user("Sure?"), assistant("Yes")]
    row = processor.encode_chat(messages)
    tokenizer = processor.tokenizer
    answers = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 2] for text in ("Red it is.", "Yes")]
    assert row.ids[row.is_answer].tolist() == answers[0] + answers[1]
    assert row.is_visual.sum() == 65  # the typed one stays text
    prompt = tokenize(processor, messages[:1], add_generation_prompt=True)["input_ids"][0]
    assert row.ids[: len(prompt)].tolist() == prompt.tolist()


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["of the language model", "with marks"])
@pytest.mark.parametrize("has_ended", [True, False])
def test_a_conversation_goes_on_after_what_the_model_wrote(llama_processor, template, has_ended):
    """The ids so far, the answer's and the new turn's are those of the whole chat, whichever template renders it."""
    processor = with_template(llama_processor, template)
    messages = [user("Hi"), assistant("Hello.")]
    turn = user("<image>", "And?")
    turn["content"][0]["image"] = RED
    new = processor.continue_chat(messages, turn, has_ended)
    tail = {CHATML: "\n<|im_start|>user\n<image>\nAnd?</s>\n<|im_start|>assistant\n", MARKED: "Q:<image>And?A:"}[
        template
    ]
    tail = tail if has_ended else "</s>" + tail
    expected = processor(text=[tail], images=[RED], add_special_tokens=False, return_tensors="pt")
    assert new["input_ids"].tolist() == expected["input_ids"].tolist()
    assert torch.equal(new["pixel_values"], expected["pixel_values"])


def test_a_template_without_marks_must_write_answers_as_they_are(llama_processor):
    for template in ("{{ messages[0].content }}", "{% for m in messages %}{{ m.content | upper }}{% endfor %}"):
        processor = MplugOwlProcessor(
            llama_processor.image_processor, llama_processor.tokenizer, chat_template=template
        )
        with pytest.raises(ValueError, match=r"mark the answers by {% generation %}"):
            processor.encode_chat([{"role": "user", "content": "Hi"}, assistant("Hello.")])


@pytest.mark.parametrize("number", [0, -1, 2**20, 10**12])
def test_a_folder_cannot_ask_for_any_number_of_positions(number, llama_processor, tmp_path):
    llama_processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({**settings, "num_query_tokens": number}))
    with pytest.raises(ValueError, match=rf"`num_query_tokens` is {number}, but must be from 1 to 1048575"):
        MplugOwlProcessor.from_pretrained(tmp_path)
