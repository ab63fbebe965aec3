"""The README's server answers the README's client and others over HTTP, from the ids that the processor gives."""

import base64
import http.client
import io
import json
import os
import shlex
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
import torch
from clips import write_clip
from conftest import SYSTEM, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_readme import ROOT, blocks

from transformers_owl import MINIATURE, MplugOwlForConditionalGeneration, MplugOwlImageProcessor, MplugOwlProcessor
from transformers_owl.loading import load


TOKENS = 6
# The command line, with a record of what reaches the model.
PROGRAM = """
    import json, sys
    from pathlib import Path
    from transformers_owl import MplugOwlForConditionalGeneration
    from transformers_owl.cli import app

    generate = MplugOwlForConditionalGeneration.generate

    def record(self, **inputs):
        pixels = inputs.get("pixel_values")
        seen = {"ids": inputs["input_ids"].tolist(), "pixels": None if pixels is None else pixels.sum().item()}
        Path("seen.json").write_text(json.dumps(seen))
        return generate(self, **inputs)

    MplugOwlForConditionalGeneration.generate = record
    app(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def readme():
    """The README's command line and its client."""
    lines = [line for block in blocks("README.md", "bash") for line in block.splitlines()]
    clients = [block for block in blocks("README.md", "python") if "openai" in block]
    return next(line for line in lines if line.startswith("transformers-owl serve")), clients[0]


@pytest.fixture(scope="module")
def server(readme, llama_model, llama_processor, tmp_path_factory):
    """Folder and port of a running server."""
    folder = tmp_path_factory.mktemp("server")
    llama_model.save_pretrained(folder / "build/my-owl")
    llama_processor.save_pretrained(folder / "build/my-owl")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "open").mkdir()
    opened = ["--allow-files", "open", "--allow-host", "owl.example"]
    with running(folder, [*shlex.split(readme[0])[1:], *opened]) as port:
        yield folder, port


@contextmanager
def running(folder, arguments):
    """The port of a server that is started in a folder."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = [argument.replace("8000", str(port)) for argument in arguments]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": ":".join(str(Path(path).absolute()) for path in sys.path),
            "http_proxy": "http://127.0.0.1:9",  # a server asks directly
        },
    )
    try:
        wait_for(f"http://localhost:{port}/health", process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_for(url, process):
    for _ in range(600):
        assert process.poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"http://localhost:{server[1]}/v1", api_key="none", max_retries=0) as client:
        yield client


def as_url(image) -> dict:
    file = io.BytesIO()
    image.save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def chats(images) -> list[tuple[list, str, list]]:
    """Requests, the prompts that they stand for, and the images of these."""
    words = {"type": "text", "text": "What is it?"}
    one_image = [{"role": "user", "content": [as_url(images[0]), words]}]
    second = {"role": "user", "content": [words, as_url(images[1])]}
    first = f"{SYSTEM}\nHuman: <image>\nHuman: What is it?\nAI: "
    return [
        ([{"role": "user", "content": "Hi!"}], f"{SYSTEM}\nHuman: Hi!\nAI: ", []),
        (one_image, first, images[:1]),
        (
            [*one_image, {"role": "assistant", "content": "An owl."}, second],
            first + "An owl.\nHuman: What is it?\nHuman: <image>\nAI: ",
            images[:2],
        ),
        (
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is <image> text?"}],
            "Be brief.\nHuman: Is <\ufdd0image> text?\nAI: ",
            [],
        ),
    ]


@pytest.mark.parametrize("number", range(4), ids=["text", "image", "two turns", "system"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_answers_are_those_of_generate(server, client, llama_model, llama_processor, images, number, stream):
    messages, text, given = chats(images)[number]
    inputs = llama_processor(text=[text], images=given or None, return_tensors="pt")
    written = llama_model.generate(**inputs, max_new_tokens=TOKENS)[0, inputs["input_ids"].shape[1] :]
    reply = client.chat.completions.create(
        model="build/my-owl", messages=messages, max_tokens=TOKENS, temperature=0, stream=stream
    )
    if stream:
        chunks = list(reply)
        assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 1
        answer = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        usage = chunks[-1].usage
    else:
        answer, usage = reply.choices[0].message.content, reply.usage
    assert answer == llama_processor.decode(written, skip_special_tokens=True)
    assert (usage.prompt_tokens, usage.completion_tokens) == (inputs["input_ids"].shape[1], TOKENS)
    seen = json.loads((server[0] / "seen.json").read_text())
    assert seen["ids"] == inputs["input_ids"].tolist()
    assert seen["pixels"] == (pytest.approx(inputs["pixel_values"].sum().item(), rel=1e-5) if given else None)


def test_the_client_of_the_readme_gets_its_answer(server, readme, capsys, monkeypatch, llama_model, llama_processor):
    monkeypatch.chdir(server[0])
    block = readme[1].replace("8000", str(server[1])).replace("max_tokens=", "max_tokens=5 or ")
    exec(compile(block, "README.md", "exec"), {})
    content = [{"type": "image", "path": "examples/pictures/cat.jpg"}, {"type": "text", "text": "What is this?"}]
    inputs = llama_processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    written = llama_model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    assert capsys.readouterr().out == llama_processor.decode(written, skip_special_tokens=True) + "\n"


USER = {"role": "user", "content": "Hi!"}


def shown(url, kind="image_url") -> list[dict]:
    return [{"role": "user", "content": [{"type": kind, kind: {"url": url}}]}]


def image_file(kind="png", size=(9, 9), whole=1.0) -> str:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    data = file.getvalue()[: int(len(file.getvalue()) * whole)]
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# What is asked in place of a plain question, and what is said to it.
REFUSED = {
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "`tools` is .* leave it out"),
    "tool choice": ({"tool_choice": "required"}, "`tool_choice` is 'required'"),
    "several answers": ({"n": 2}, "`n` is 2, which this server does not support"),
    "stop": ({"stop": ["a"]}, "`stop` is .*does not support: leave it out"),
    "log probabilities": ({"logprobs": True}, "`logprobs` is True"),
    "JSON": ({"response_format": {"type": "json_object"}}, "`response_format` is"),
    "a template": (
        {"chat_template_kwargs": {"chat_template": "{% for i in range(10**9) %}"}},
        "`chat_template_kwargs`",
    ),
    "code": ({"generation_config": '{"custom_generate": "x"}'}, "`generation_config` is"),
    "a typo": ({"temprature": 1}, "Unknown field: 'temprature'. Did you mean 'temperature'"),
    "temperature": ({"temperature": 5}, "`temperature` is 5, but must be a number from 0 to 2"),
    "hot text": ({"temperature": "hot"}, "`temperature` is 'hot'"),
    "top_p": ({"top_p": -1}, "`top_p` is -1"),
    "no tokens": ({"max_tokens": 0}, "`max_tokens` is 0, but must be an integer from 1"),
    "half tokens": ({"max_tokens": 1.5}, "`max_tokens` is 1.5"),
    "true tokens": ({"max_completion_tokens": True}, "`max_completion_tokens` is True"),
    "seed": ({"seed": 2**70}, "`seed` is"),
    "another model": ({"model": "gpt2"}, "`model` is 'gpt2', but this server only has 'build/my-owl'"),
    "no messages": ({"messages": []}, "`messages` is .*, but must be a non-empty list of messages"),
    "messages of text": ({"messages": "Hi!"}, "`messages` is 'Hi!'"),
    "a message of text": ({"messages": ["Hi!"]}, "message 1 is 'Hi!', but must be an object"),
    "no role": ({"messages": [{"content": "Hi!"}]}, "`role` of message 1 is None, but must be one of system"),
    "role tool": ({"messages": [USER, {"role": "tool", "content": "1"}]}, "`role` of message 2 is 'tool'"),
    "role of a list": ({"messages": [{"role": [], "content": "1"}]}, r"`role` of message 1 is \[\]"),
    "null content": ({"messages": [{"role": "user", "content": None}]}, "`content` of message 1 is None"),
    "a call": ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "message 1 calls tools"),
    "content of a number": ({"messages": [{"role": "user", "content": 5}]}, "`content` of message 1 is 5"),
    "a part of text": ({"messages": [{"role": "user", "content": ["Hi!"]}]}, "part 1 of message 1 is 'Hi!'"),
    "audio": ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "`type` of part 1 of message 1"),
    "no URL": ({"messages": shown(None)}, 'must be an object with a "url"'),
    "a path": ({"messages": shown("examples/pictures/cat.jpg")}, "To read files of the server, allow their folder"),
    "a path out": ({"messages": shown("open/../examples/pictures/cat.jpg")}, "To read files of the server"),
    "a file URL": ({"messages": shown("file:///etc/passwd")}, "names 'file:///etc/passwd', but must name a URL"),
    "an internal URL": ({"messages": shown("http://127.0.0.1:1/a.png")}, "has the internal address 127.0.0.1"),
    "a URL behind a proxy": ({"messages": shown("http://images.invalid/a.png")}, "cannot be read: .*[Nn]ame"),
    "a video": ({"messages": shown("data:video/mp4;base64,AAAA", "video_url")}, "but must be one of text, image_url"),
    "a damaged image": ({"messages": shown(image_file(whole=0.7))}, "cannot be read"),
    "no image": ({"messages": shown("data:image/png;base64,AAAA")}, "cannot be read"),
    "no base64": ({"messages": shown("data:image/png;base64,!")}, "cannot be read"),
    "a huge image": ({"messages": shown(image_file("gif", (9000, 9000)))}, "pixels are 81,000,000, but at most"),
    "many images": ({"messages": shown(image_file()) * 100}, "positions, but the language model's context length is"),
    "a long text": ({"messages": [{"role": "user", "content": "word " * 2500}]}, "positions, but the language model"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_refused_with_a_sentence(server, client, name, stream):
    asked, sentence = REFUSED[name]
    body = {"model": "build/my-owl", "messages": [USER], "stream": stream, "max_tokens": 3, **asked}
    with pytest.raises(openai.BadRequestError, match=sentence):
        client.post("/chat/completions", body=body, cast_to=object)


def test_limits_of_this_model_are_those_of_the_grid(llama_model):
    assert llama_model.context_length == 2048


ANSWERED = {
    "plain": {},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
    "nothing asked for": {"stop": None, "n": 1, "tools": [], "tool_choice": "none", "logprobs": False, "user": "me"},
    "usage": {"stream_options": {"include_usage": True}, "metadata": {"a": "b"}, "store": False},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi!"}]}]},
    "newer name": {"max_tokens": None, "max_completion_tokens": TOKENS},
    "an empty text": {"messages": [{"role": "user", "content": ""}]},
    "an open file": {"messages": shown("open/cat.jpg")},
    "odd characters": {"messages": [{"role": "user", "content": "\u2028 <image> 🦉 \0"}]},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", ANSWERED)
def test_what_changes_nothing_is_taken(server, client, name, stream, llama_model, llama_processor):
    (server[0] / "open/cat.jpg").write_bytes((ROOT / "examples/pictures/cat.jpg").read_bytes())
    body = {"model": "build/my-owl", "messages": [USER], "max_tokens": TOKENS, "temperature": 0, "stream": stream}
    body |= ANSWERED[name]
    reply = client.chat.completions.create(**{key: value for key, value in body.items() if value is not None})
    pieces = [part.choices[0].delta.content or "" for part in reply] if stream else [reply.choices[0].message.content]
    chat = [
        {
            "role": message["role"].replace("developer", "system"),
            "content": [{"type": "text", "text": message["content"]}]
            if isinstance(message["content"], str)
            else message["content"],
        }
        for message in body["messages"]
    ]
    if name == "an open file":
        chat = [{"role": "user", "content": [{"type": "image", "path": str(server[0] / "open/cat.jpg")}]}]
    inputs = llama_processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    written = llama_model.generate(**inputs, max_new_tokens=TOKENS)[0, inputs["input_ids"].shape[1] :]
    answer = llama_processor.decode(written, skip_special_tokens=True)
    assert "".join(pieces) == (answer.rstrip("\ufffd") if stream else answer)  # a stream ends with a whole character


def ask(port, method, path, body=None, **headers) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("localhost", port, timeout=20)
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    with reply:
        return reply.status, json.loads(reply.read())


CALLERS = {
    "loading": ("POST", "/load_model", {}, False), "reset": ("POST", "/reset", {}, False),
    "responses": ("POST", "/v1/responses", {}, False), "completions": ("POST", "/v1/completions", {}, False),
    "the page of the API": ("GET", "/docs", {}, False), "its description": ("GET", "/openapi.json", {}, False),
    "no JSON": ("POST", "/v1/chat/completions", {}, False),
    "health": ("GET", "/health", {}, True), "models": ("GET", "/v1/models", {}, True),
    "an address": ("GET", "/health", {"Host": "127.0.0.1:80"}, True),
    "an address of IPv6": ("GET", "/health", {"Host": "[::1]:80"}, True),
    "a name that was allowed": ("GET", "/health", {"Host": "owl.example"}, True),
    "another name": ("GET", "/health", {"Host": "evil.example"}, False),
    "no name": ("GET", "/health", {"Host": ""}, False),
    "a page of its own": ("GET", "/health", {"Host": "localhost:1", "Origin": "http://localhost:1"}, True),
    "a foreign page": ("GET", "/health", {"Origin": "https://evil.example"}, False),
    "no page": ("GET", "/health", {"Origin": "null"}, False),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLERS)
def test_only_clients_of_chats_are_let_in(server, name):
    method, path, headers, is_open = CALLERS[name]
    status, said = ask(server[1], method, path, b"[1" if method == "POST" else None, **headers)
    assert status == (200 if is_open else 400)
    if not is_open:
        assert said["error"]["message"].endswith((".", "expected.")) or "JSON" in said["error"]["message"]


def test_half_a_character_is_refused(server):
    body = json.dumps({"messages": [{"role": "user", "content": "\ud83e"}]})
    status, said = ask(server[1], "POST", "/v1/chat/completions", body)
    assert status == 400 and "half a character" in said["error"]["message"]


JSON = st.recursive(
    st.sampled_from([None, True, -1, 0, 1, 2.5, 1e400, "", "x", "user", "text", "image_url", "data:,", "\0", "\u2028"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "role", "text", "url"]), inner)
    ),
    max_leaves=6,
)
FIELDS = sorted({"model", "seed", *(name for asked, _ in REFUSED.values() for name in asked), *ANSWERED["usage"]})
MESSAGES = [
    message
    for asked in (*(asked for asked, _ in REFUSED.values()), *ANSWERED.values())
    for message in asked.get("messages", [])
    if isinstance(message, dict) and len(str(message)) < 5_000
]


@st.composite
def requests(draw):
    chosen = draw(st.lists(st.sampled_from(FIELDS), max_size=2))
    messages = draw(st.one_of(st.just([USER]), st.lists(st.one_of(st.sampled_from(MESSAGES), JSON), max_size=3)))
    return {"messages": messages, "stream": draw(st.booleans()), "max_tokens": 2} | {
        name: draw(JSON) for name in chosen
    }


@pytest.mark.slow
def test_any_request_is_answered_or_refused_with_a_sentence(server):
    """New requests in every run; Hypothesis keeps those that failed and tries them first."""
    answered = []

    @settings(max_examples=500, deadline=None)
    @given(requests())
    def holds(body):
        connection = http.client.HTTPConnection("localhost", server[1], timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        with reply:
            said = reply.read()
        assert reply.status in (200, 400), said
        if reply.status == 400:
            assert len(json.loads(said)["error"]["message"].split()) >= 4
        answered.append(reply.status == 200)

    holds()
    assert sum(answered) >= len(answered) / 10
    assert ask(server[1], "GET", "/health")[0] == 200


def test_the_model_alone_is_listed(client):
    assert [model.id for model in client.models.list()] == ["build/my-owl"]


@pytest.mark.slow
def test_adapters_of_video_models_are_served(tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    text = {"vocab_size": 2049, "hidden_size": 64, "num_attention_heads": 2, "initializer_range": 0.2}
    config = tiny_config(text, vision_config={"use_temporal": True}, initializer_range=0.2)
    model = MplugOwlForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "base")
    settings = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model.name_or_path = model.config._name_or_path = str(tmp_path / "base")
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    image_processor = MplugOwlImageProcessor(size={"height": 28, "width": 28})
    processor = MplugOwlProcessor(
        image_processor, MplugOwlProcessor.from_pretrained(MINIATURE).tokenizer, num_query_tokens=4
    )
    processor.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "adapter")
    clip = write_clip(tmp_path / "clip.mp4", "libx264")
    url = f"data:video/mp4;base64,{base64.b64encode(Path(clip).read_bytes()).decode()}"
    with (
        running(tmp_path, ["serve", "adapter", "--port", "8000", "--dtype", "float32"]) as port,
        openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", max_retries=0) as client,
    ):
        reply = client.chat.completions.create(
            model="adapter", messages=shown(url, "video_url"), max_tokens=6, temperature=0
        )
    loaded, processor = load(str(tmp_path / "adapter"), "cpu")
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video", "path": str(clip)}]}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    written = loaded.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    assert reply.choices[0].message.content == processor.decode(written, skip_special_tokens=True)
