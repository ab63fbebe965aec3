"""The chat page forgets its visitors, and each can go on."""

import gc
import random
import sys
from pathlib import Path

import pytest
from browser import free_port

from transformers_owl.demo.desk import About, Desk


gr = pytest.importorskip("gradio")
web = pytest.importorskip("transformers_owl.demo.web")
sys.path.insert(0, str(Path(__file__).parents[2] / "research/benchmarks"))


class Echo(Desk):
    """Says the questions so far."""

    about = About("an echo")
    sees_videos = False

    def stream(self, turns, options):
        yield " ".join(turn["text"] for turn in turns if turn["role"] == "user")


def boxes() -> int:
    gc.collect()
    return sum(isinstance(each, gr.MultimodalTextbox) for each in gc.get_objects())


def test_visitors_are_forgotten_and_go_on():
    from under_load import Web

    port, choice = free_port(), random.Random(0)
    with web.serving(Echo(), "127.0.0.1", port):
        page = Web(port)

        def say(text, log):
            _, log = page.call(page.send, [{"text": text, "files": []}, log], "first", 20)["data"]
            page.call(page.answer, [log, 0, 0.9, 1, 16], "first", 20, "queue/join")
            log, written = page.stream("first", 20, log)
            _, log, _ = page.call(page.settle, [log, written, {"text": "", "files": []}], "first", 20)["data"]
            return log

        def boxes_after_visits() -> int:
            for _ in range(web.VISITORS_REMEMBERED + 10):
                assert page.ask("text", choice, 20) == "answer"
            return boxes()

        log = say("One.", {"turns": [], "html": ""})
        assert boxes_after_visits() == boxes_after_visits()
        assert say("Two.", log)["turns"][-1]["text"] == "One. Two."
