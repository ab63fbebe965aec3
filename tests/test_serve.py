"""The README's server answers the README's client and others over HTTP, from the ids that the processor gives."""

import base64
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
from pathlib import Path

import openai
import pytest
from conftest import SYSTEM
from test_readme import ROOT, blocks


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
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = shlex.split(readme[0].replace("8000", str(port)))[1:]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ":".join(str(Path(path).absolute()) for path in sys.path)},
    )
    try:
        wait_for(f"http://localhost:{port}/health", process)
        yield folder, port
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


def as_url(picture) -> dict:
    file = io.BytesIO()
    picture.save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def chats(pictures) -> list[tuple[list, str, list]]:
    """Requests, the prompts that they stand for, and the pictures of these."""
    words = {"type": "text", "text": "What is it?"}
    one_picture = [{"role": "user", "content": [as_url(pictures[0]), words]}]
    second = {"role": "user", "content": [words, as_url(pictures[1])]}
    first = f"{SYSTEM}\nHuman: <image>\nHuman: What is it?\nAI: "
    return [
        ([{"role": "user", "content": "Hi!"}], f"{SYSTEM}\nHuman: Hi!\nAI: ", []),
        (one_picture, first, pictures[:1]),
        (
            [*one_picture, {"role": "assistant", "content": "An owl."}, second],
            first + "An owl.\nHuman: What is it?\nHuman: <image>\nAI: ",
            pictures[:2],
        ),
        (
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is <image> text?"}],
            "Be brief.\nHuman: Is <\ufdd0image> text?\nAI: ",
            [],
        ),
    ]


@pytest.mark.parametrize("number", range(4), ids=["text", "picture", "two turns", "system"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_answers_are_those_of_generate(server, client, llama_model, llama_processor, pictures, number, stream):
    messages, text, images = chats(pictures)[number]
    inputs = llama_processor(text=[text], images=images or None, return_tensors="pt")
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
    assert seen["pixels"] == (pytest.approx(inputs["pixel_values"].sum().item(), rel=1e-5) if images else None)


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
