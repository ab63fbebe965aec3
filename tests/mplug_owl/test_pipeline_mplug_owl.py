"""Pipelines: every form of input gets the answers of `generate`, in a process that has never seen this package too."""

import base64
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from threading import Thread

import numpy as np
import PIL.Image
import pytest
from conftest import SYSTEM
from hub import Hub
from torch.utils.data import Dataset
from transformers import TextIteratorStreamer, logging, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from transformers_owl import MplugOwlImageToTextPipeline


TOKENS = 6


@pytest.fixture(scope="module")
def saved(tmp_path_factory, llama_model, llama_processor):
    folder = tmp_path_factory.mktemp("saved")
    llama_model.save_pretrained(folder)
    llama_processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def quiet():
    """The library warns about the task's name where no folder of ours is given; pytest trips over how it does that."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def describe(llama_model, llama_processor, quiet):
    return pipeline(
        "image-to-text",
        model=llama_model,
        processor=llama_processor,
        pipeline_class=MplugOwlImageToTextPipeline,
        device="cpu",
        max_new_tokens=TOKENS,
    )


@pytest.fixture(scope="module")
def chatting(llama_model, llama_processor):
    return pipeline("image-text-to-text", model=llama_model, processor=llama_processor, device="cpu")


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


def asked(question: str = "Describe the picture.") -> str:
    return f"{SYSTEM}\nHuman: <image>\nHuman: {question}\nAI: "


@pytest.fixture(scope="module")
def answers(llama_model, llama_processor):
    """What `generate` answers to one text and its images, in the pipeline's form."""

    def generate(text, *images, **options):
        inputs = llama_processor(text=[text], images=list(images), return_tensors="pt")
        written = llama_model.generate(**inputs, **{"max_new_tokens": TOKENS, **options})
        texts = llama_processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]

    return generate


@pytest.fixture(scope="module")
def described(answers, images):
    """The answers about the three images. They differ."""
    each = [answers(asked(), image) for image in images]
    assert len({answer[0]["generated_text"] for answer in each}) == 3
    return each


def test_an_image_in_every_form(describe, described, llama, hub, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_OWL_ALLOW_INTERNAL_URLS", "1")
    path = llama.folder / "image_0.png"
    image = PIL.Image.open(path)
    hub.repositories["owner/pictures"] = {"image_0.png": path.read_bytes()}
    url = f"{hub.endpoint}/owner/pictures/resolve/main/image_0.png"
    data = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    content = path.read_bytes()
    pixels = np.asarray(image.convert("RGB"))
    for form in (image, str(path), path, content, url, data, pixels, {"image": image}, {"image": content}):
        assert describe(form) == described[0], form
    assert describe(images=image) == described[0]


class Rows(Dataset):
    """A torch dataset of rows."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Column:
    """An iterable that is neither list nor dataset, as a column or a stream of `datasets` is."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_images_in_every_form(describe, described, images, batch_size):
    rows = [{"image": image, "label": 7} for image in images]
    for form in (
        images,
        tuple(images),
        rows,
        (image for image in images),
        iter(images),
        Column(images),
        Column(rows),
        Rows(images),
        KeyDataset(Rows(rows), "image"),
    ):
        assert list(describe(form, batch_size=batch_size)) == described, form


def test_a_stream_is_answered_as_it_goes(describe, described, images):
    taken = []

    def stream():
        for image in images:
            taken.append(image)
            yield image

    results = iter(describe(stream()))
    assert next(results) == described[0]
    assert len(taken) == 1


QUESTIONS = ["What?", "Who is to be seen here, and what may have happened before?", "A short <|video|> question"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_prompts(describe, answers, images, batch_size):
    texts = [asked(question) for question in QUESTIONS]
    texts[2] = texts[2].replace("<|video|>", "<\ufdd0|video|>")  # what is typed stays text
    expected = [answers(text, image) for text, image in zip(texts, images, strict=True)]
    rows = [{"image": image, "text": question} for image, question in zip(images, QUESTIONS, strict=True)]
    assert describe(images, QUESTIONS, batch_size=batch_size) == expected
    assert describe(images, text=QUESTIONS, batch_size=batch_size) == expected
    assert list(describe(iter(rows), batch_size=batch_size)) == expected
    assert describe(images[:2], prompt=QUESTIONS[0], batch_size=batch_size) == [
        answers(texts[0], image) for image in images[:2]
    ]


def test_a_prompt_with_the_placeholder_is_the_whole_input(describe, answers, images):
    whole = "Before <image> and after"
    expected = [answers(whole, images[1]), answers(asked("What?"), images[1])]
    assert describe(images[1], prompt=whole) == expected[0]
    assert describe([images[1]] * 2, prompt=[whole, "What?"], batch_size=2) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"max_new_tokens": 3},
        {"repetition_penalty": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_options_of_generate(describe, answers, images, options, batch_size):
    expected = [answers(asked(), image, **options) for image in images]
    assert describe(images, batch_size=batch_size, **options) == expected
    assert describe(images, batch_size=batch_size, generate_kwargs=options) == expected
    told_before = MplugOwlImageToTextPipeline(
        describe.model, processor=describe.processor, device="cpu", **{"max_new_tokens": TOKENS, **options}
    )
    assert told_before(images, batch_size=batch_size) == expected


def test_answers_are_as_long_as_the_checkpoint_says(llama_model, llama_processor, answers, images, monkeypatch):
    monkeypatch.setattr(llama_model.generation_config, "max_new_tokens", 11)
    unlimited = MplugOwlImageToTextPipeline(llama_model, processor=llama_processor, device="cpu")
    assert unlimited(images[0]) == answers(asked(), images[0], max_new_tokens=11)


def chat(*parts, before=()):
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return [*before, {"role": "user", "content": content}]


def test_chats_with_several_images(describe, answers, images):
    compare = chat(images[0], images[1], "Compare.")
    text = f"{SYSTEM}\nHuman: <image>\nHuman: <image>\nHuman: Compare.\nAI: "
    expected = answers(text, *images[:2])
    assert describe(compare) == expected
    assert describe(text=compare) == expected
    assert describe([compare, compare], batch_size=2) == [expected, expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "No image was given"),
        ({"prompt": "What?"}, "No image was given"),
        ({"images": "no-such.png"}, "'no-such.png' cannot be read"),
        ({"images": ["a.png", "b.png"], "prompt": ["What?"]}, "1 prompts were given for 2 images"),
        ({"images": "a.png", "prompt": ["What?"]}, "1 prompts were given for a str"),
        ({"images": {"picture": "a.png"}}, "keys \\['picture'\\], but must have 'image'"),
        ({"images": 7}, "An image is of type int"),
        ({"images": "examples/pictures/cat.jpg", "num_beam": 2}, "num_beam"),
        ({"images": "examples/pictures/cat.jpg", "prompt": "<image><image>"}, r"there are \[2\] and \[1\]"),
    ],
)
def test_mistakes_are_named(describe, arguments, message, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(ValueError, match=message):
        describe(**arguments)


def test_no_images_no_answers(describe):
    assert describe([]) == []


def test_a_release_and_a_folder_of_ours_with_the_package(quiet, saved, llama, described, images):
    for folder in (llama.checkpoint, saved):
        describe = pipeline("image-to-text", model=folder, pipeline_class=MplugOwlImageToTextPipeline, device="cpu")
        assert type(describe) is MplugOwlImageToTextPipeline
        assert describe(images, batch_size=3, max_new_tokens=TOKENS) == described
    trusted = pipeline("image-to-text", model=saved, trust_remote_code=True, local_files_only=True, device="cpu")
    assert trusted(images, max_new_tokens=TOKENS) == described


ELSEWHERE = """
    import json, sys

    class Hide:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "transformers_owl":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Hide())

    from transformers import pipeline
    source, repository, again, image, tokens = sys.argv[1:]
    options = {"max_new_tokens": int(tokens)}
    describe = pipeline("image-to-text", model=source, trust_remote_code=True, device="cpu")
    describe.save_pretrained(again)
    describe.push_to_hub(repository)
    pushed = pipeline(model=repository, trust_remote_code=True, **options)
    kept = pipeline("image-to-text", model=again, trust_remote_code=True, **options)
    print(json.dumps({
        "module": type(describe).__module__.partition(".")[0],
        "answers": [describe(image, **options), pushed(image), kept([image, image], batch_size=2)],
        "asked": describe(image, prompt="What?", num_beams=2, **options),
    }))
"""


@pytest.mark.slow
def test_saved_and_pushed_pipelines_work_without_the_package(saved, hub, described, answers, llama, tmp_path):
    image = str(llama.folder / "image_0.png")
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": ":".join(sys.path)}
    arguments = [saved, "owner/owl", str(tmp_path / "again"), image, str(TOKENS)]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ELSEWHERE), *arguments], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == {
        "module": "transformers_modules",
        "answers": [described[0], described[0], [described[0], described[0]]],
        "asked": answers(asked("What?"), image, num_beams=2),
    }
    assert "not supported" not in result.stderr
    files = {path.name for path in (tmp_path / "again").iterdir()}
    assert files == {path.name for path in Path(saved).iterdir()}
    assert files <= set(hub.repositories["owner/owl"])


def test_image_text_to_text_answers_chats(chatting, answers, images):
    """The library's own pipeline: several images, two turns, batches."""
    first = chat(images[0], images[1], "Compare.")
    second = chat("Why?", before=[*first, {"role": "assistant", "content": [{"type": "text", "text": "Both."}]}])
    texts = [f"{SYSTEM}\nHuman: <image>\nHuman: <image>\nHuman: Compare.\nAI: "]
    texts.append(texts[0] + "Both.\nHuman: Why?\nAI: ")
    expected = [answers(text, *images[:2])[0]["generated_text"] for text in texts]
    options = {"max_new_tokens": TOKENS, "return_full_text": False}
    assert [chatting(text=turns, **options)[0]["generated_text"] for turns in (first, second)] == expected
    for batch_size in (1, 2):
        together = chatting(text=[first, second], batch_size=batch_size, **options)
        assert [answer[0]["generated_text"] for answer in together] == expected
    whole = chatting(text=second, max_new_tokens=TOKENS)[0]["generated_text"]
    assert whole == [*second, {"role": "assistant", "content": expected[1]}]


def test_image_text_to_text_takes_a_raw_prompt(chatting, answers, images):
    """The library decodes prompt and answer together, so that a space between the two is part of the answer."""
    text = asked("What?")
    found = chatting(images=images[0], text=text, max_new_tokens=TOKENS, return_full_text=False)
    assert found[0]["input_text"] == text
    assert found[0]["generated_text"].removeprefix(" ") == answers(text, images[0])[0]["generated_text"]


def test_image_text_to_text_streams(chatting, answers, llama_processor, images):
    streamer = TextIteratorStreamer(llama_processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    options = {"max_new_tokens": TOKENS, "generate_kwargs": {"streamer": streamer}}
    thread = Thread(target=chatting, kwargs={"text": chat(images[0], "What?"), **options})
    thread.start()
    parts = list(streamer)
    thread.join()
    assert "".join(parts) == answers(asked("What?"), images[0])[0]["generated_text"]
    assert len([part for part in parts if part]) > 1
