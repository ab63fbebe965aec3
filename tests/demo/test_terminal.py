"""The chat in a terminal: what is typed and answered there is what `generate` gives; Ctrl-C stops an answer alone."""

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pexpect
import pytest
import torch
from typer.testing import CliRunner

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.cli import app
from transformers_owl.demo.terminal import COMPLETES, TerminalChat, Wrapped, typed_lines
from transformers_owl.inference import Chat
from transformers_owl.loading import memory_advice


IMAGES = Path(__file__).parents[2] / "examples/pictures"
ASTRONAUT, CAT = str(IMAGES / "astronaut.jpg"), str(IMAGES / "cat.jpg")


@pytest.fixture
def talk(llama):
    """Runs the command with these lines typed."""

    def run(*lines, options=()):
        typed = "".join(f"{line}\n" for line in lines)
        arguments = ["chat", "--model", llama.checkpoint, "--max-new-tokens", "6", *options]
        return CliRunner().invoke(app, arguments, input=typed)

    return run


def test_answers_over_turns_with_images(talk, llama, llama_processor, tmp_path):
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


MISTAKES = {
    "/image no-such.png": "no-such.png' cannot be read",
    "/image {bad}": "bad.png' cannot be read",
    "/image ~/no-such.png": f"{Path.home()}/no-such.png' cannot be read",
    "/imge x": "Unknown command: '/imge'. Did you mean '/image'?",
    "/save": "/save needs the name of a file",
    "/save /no/such/folder/x": "No such file or directory",
    "/load": "/load needs the name of a file",
    "/load /no/such/file": "No such file or directory",
    "/load {bad}": "bad.png is not a conversation that /save wrote",
    "/system": "/system needs a sentence",
    "/image 'unclosed": "No closing quotation",
    "word " * 2100: "context length is 2048",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[:20])
def test_a_mistake_in_piped_lines_ends_the_command_with_an_error(talk, tmp_path, mistake):
    (tmp_path / "bad.png").write_text("not an image")
    result = talk(mistake.format(bad=tmp_path / "bad.png"), "What is in the image?")
    assert result.exit_code == 1
    assert MISTAKES[mistake] in result.stderr
    assert "What is" not in result.stdout


def test_a_person_is_told_of_mistakes_and_goes_on(llama_model, llama_processor, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.png").write_text("not an image")
    lines = [mistake.format(bad=tmp_path / "bad.png") for mistake in MISTAKES] + ["Hi", "exit", "never read"]
    read = iter(lines)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("transformers_owl.demo.terminal.piped_line", lambda: next(read))
    TerminalChat(llama_model, llama_processor, {"max_new_tokens": 3}, name="a tiny owl").run([])
    shown = capsys.readouterr().out
    assert shown.startswith("a tiny owl\nAsk a question.")
    assert all(message in shown for message in [*MISTAKES.values(), "No image yet"])
    assert shown.count("Owl: ") == 2
    assert list(read) == ["never read"]


@pytest.mark.parametrize("word", ["exit", "quit", "/quit", "/exit"])
def test_words_that_leave(talk, word):
    result = talk(word, "never read")
    assert (result.exit_code, "Owl:" in result.stdout) == (0, False)


def test_a_saved_conversation_goes_on_where_it_was(talk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = talk(
        "What is it?", "/save talk.json", "So?", "/save whole.json", options=[ASTRONAUT, "--system", "Be brief."]
    )
    assert f"Saved to {tmp_path}/talk.json." in result.stdout
    result = talk("/load talk.json", "So?", "/save again.json")
    assert f"Loaded {tmp_path}/talk.json: 1 questions and answers." in result.stdout
    whole, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "again"))
    assert again[:4] == whole[:4]
    assert len(again) == 5
    assert again[1]["content"][0] == {"type": "image", "path": ASTRONAUT}


# What is typed, and what is read of it.
TYPED = {
    "one line\r": "one line",
    "first\x1b\rsecond\r": "first\nsecond",
    "\x1b[200~pasted\nlines\n\nas one\x1b[201~ question\r": "pasted\nlines\n\nas one question",
    "/im\t x\r": "/image x",
    "/im\t {folder}/ow\t\r": "/image {folder}/owl.png",
    "/save {folder}/ow\t\r": "/save {folder}/owl.png",
    "/clear {folder}/ow\r": "/clear {folder}/ow",
    "/image ~/.no-such\r": "/image ~/.no-such",
}


@pytest.mark.parametrize("typed", TYPED, ids=lambda typed: ascii(typed)[:24])
def test_lines_are_typed_pasted_and_completed(tmp_path, typed):
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    (tmp_path / "owl.png").touch()
    with create_pipe_input() as keys:
        read = typed_lines(COMPLETES, input=keys, output=DummyOutput())

        def type_slowly():
            for part in re.findall(r"[^\t]+\t?", typed.format(folder=tmp_path)):
                keys.send_text(part)
                time.sleep(0.4)  # until a completion is there

        threading.Thread(target=type_slowly).start()
        assert read() == TYPED[typed].format(folder=tmp_path)


@pytest.mark.parametrize(
    "text", ["a few words that are wrapped as a whole\nand a line ", "一二三四五六七八九十" * 3, "x" * 50, "a  b\n\nc"]
)
@pytest.mark.parametrize("width", [7, 10, 33])
def test_words_are_not_cut_by_the_end_of_a_line(monkeypatch, capsys, text, width):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    words = Wrapped(0)
    for letter in text:
        words.write(letter)
    words.end()
    lines = capsys.readouterr().out.split("\n")
    assert "".join("".join(lines).split()) == "".join(text.split())
    for line in lines:
        cells = sum(2 if ord(letter) > 0x2000 else 1 for letter in line)
        assert cells <= width or " " not in line.strip()
    if text[0] == "a":
        assert {word for line in lines for word in line.split()} == set(text.split())


def test_a_model_without_eyes_is_named(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["chat", "--model", str(tmp_path)])
    assert result.exit_code == 1
    assert "model of type 'llama', but must be an mPLUG-Owl" in result.stderr


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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
def test_ctrl_c_stops_the_answer_and_not_the_program(llama, tmp_path):
    """In a real terminal, with a model that would write for minutes."""
    pytest.importorskip("prompt_toolkit")
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
    for _ in range(30):  # one may come after the prompt and before it is read
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
    for _ in range(30):
        terminal.sendeof()
        if terminal.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=6) == 0:
            break
    terminal.close()
    assert terminal.exitstatus == 0
