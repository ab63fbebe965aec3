"""The chat in a terminal: what is typed and answered there is what `generate` gives; Ctrl-C stops an answer alone."""

import json
import os
import signal
import sys
from pathlib import Path

import pexpect
import pytest
import torch
from typer.testing import CliRunner

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.cli import app
from transformers_owl.demo.terminal import TerminalChat
from transformers_owl.inference import Chat
from transformers_owl.loading import memory_advice


PICTURES = Path(__file__).parents[2] / "examples/pictures"
ASTRONAUT, CAT = str(PICTURES / "astronaut.jpg"), str(PICTURES / "cat.jpg")


@pytest.fixture
def talk(llama):
    """Runs the command with these lines typed."""

    def run(*lines, options=()):
        typed = "".join(f"{line}\n" for line in lines)
        arguments = ["chat", "--model", llama.checkpoint, "--max-new-tokens", "6", *options]
        return CliRunner().invoke(app, arguments, input=typed)

    return run


def test_answers_over_turns_with_pictures(talk, llama, llama_processor, tmp_path):
    saved = tmp_path / "talk.json"
    result = talk("What is it?", f"/image {CAT} {ASTRONAUT}", "Compare.", "So?", f"/save {saved}", options=[ASTRONAUT])
    assert result.exit_code == 0, result.output
    chat = Chat(MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint), llama_processor)
    expected = [
        chat.ask("What is it?", [ASTRONAUT], max_new_tokens=6),
        chat.ask("Compare.", [CAT, ASTRONAUT], max_new_tokens=6),
        chat.ask("So?", max_new_tokens=6),
    ]
    for answer in expected:
        assert f"Owl: {answer}" in result.stdout
    messages = json.loads(saved.read_text())
    assert [message["content"] for message in messages[1::2]] == expected
    assert [part.get("path") for part in messages[2]["content"]] == [CAT, ASTRONAUT, None]
    inputs = llama_processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert len(inputs["pixel_values"]) == 3


def test_the_cache_goes_on_between_turns(llama_model, llama_processor):
    chat = TerminalChat(llama_model, llama_processor, {"max_new_tokens": 3})
    read = []
    hook = llama_model.model.language_model.register_forward_hook(
        lambda module, args, kwargs, output: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    chat.follow(f"/image {CAT}")
    chat.follow("What is it?")
    chat.follow("Sure?")
    hook.remove()
    assert sum(read) == chat.chat.ids.shape[1] - 1


def test_commands_begin_anew(talk, tmp_path):
    files = [tmp_path / f"{number}.json" for number in range(3)]
    result = talk(
        "One", f"/save {files[0]}", "/clear", "Two", f"/save {files[1]}", "/system Be brief.", "Three",
        f"/save {files[2]}", "/help", "/quit", "never read",
    )  # fmt: skip
    first, second, third = (json.loads(file.read_text()) for file in files)
    assert [message["role"] for message in first] == ["user", "assistant"]
    assert second[0]["content"][0]["text"] == "Two"
    assert third[0] == {"role": "system", "content": "Be brief."}
    assert "/system  SENTENCE" in result.stdout
    assert "never read" not in result.stdout


def test_mistakes_are_named_and_the_chat_goes_on(talk, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    mistakes = [
        "/image no-such.png", f"/image {tmp_path}/bad.png", "/imge x", "/save", "/save /no/such/folder/x", "/system",
        "/image 'unclosed", "word " * 2100, "Hi",
    ]  # fmt: skip
    result = talk(*mistakes)
    assert result.exit_code == 0, result.output
    for message in (
        "No image yet", "no-such.png' cannot be read", "bad.png' cannot be read", "Did you mean /image?",
        "/save needs the name of a file", "No such file or directory", "/system needs a sentence",
        "No closing quotation", "language model holds 2048",
    ):  # fmt: skip
        assert message in result.stdout
    assert result.stdout.count("Owl: ") == 2


def test_a_model_without_eyes_is_named(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["chat", "--model", str(tmp_path)])
    assert result.exit_code == 1
    assert "model of type 'llama', but an mPLUG-Owl was expected" in result.stderr


def test_full_memory_says_what_to_lower():
    with pytest.raises(MemoryError, match=r"Out of memory. Ask less."), memory_advice("Ask less."):
        torch.empty(10**16)
    with pytest.raises(RuntimeError, match="shape"), memory_advice("Ask less."):
        torch.empty(4).view(3)


def test_a_ctrl_c_before_the_first_word_stops_the_answer_too(llama_model, llama_processor, monkeypatch, capsys):
    options = {"max_new_tokens": 400, "suppress_tokens": [*llama_model.generation_config.suppress_tokens, 2]}
    terminal = TerminalChat(llama_model, llama_processor, options)
    stream = terminal.chat.stream

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGINT)
        yield from stream(*args, **options)

    monkeypatch.setattr(terminal.chat, "stream", interrupted)
    terminal.follow("Tell me everything.")
    assert "Stopped." in capsys.readouterr().out
    assert terminal.chat.ids.shape[1] < 400


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_ctrl_c_stops_the_answer_and_not_the_program(llama, tmp_path):
    """In a real terminal, with a model that would write for minutes."""
    program = tmp_path / "slow.py"
    program.write_text(
        "import time, torch\n"
        "from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlProcessor\n"
        "from transformers_owl.demo.terminal import TerminalChat\n"
        "torch.set_num_threads(1)\n"
        f"model = MplugOwlForConditionalGeneration.from_pretrained({llama.checkpoint!r})\n"
        "model.generation_config.suppress_tokens += [2]\n"
        "model.register_forward_pre_hook(lambda *_: time.sleep(0.1))\n"
        f"processor = MplugOwlProcessor.from_pretrained({llama.checkpoint!r})\n"
        "TerminalChat(model, processor, {'max_new_tokens': 1500}).run([])\n"
    )
    terminal = pexpect.spawn(
        sys.executable, [str(program)], timeout=180, env={**os.environ, "TERM": "dumb"}, encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job of a script ignores it
    )  # fmt: skip
    terminal.expect("You: ")
    for _ in range(30):  # readline waits on where one comes after its prompt and before its wait
        terminal.sendintr()
        if terminal.expect(["Ctrl-D leaves", pexpect.TIMEOUT], timeout=6) == 0:
            break
    else:
        pytest.fail("Ctrl-C at the prompt says nothing")
    for _ in range(2):
        terminal.expect("You: ")
        terminal.sendline("Tell me everything.")
        terminal.expect("Owl: .+")
        terminal.sendintr()
        terminal.expect("Stopped.", timeout=60)
    terminal.expect("You: ")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
