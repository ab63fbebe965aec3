"""A process that answers and answers keeps the memory it had."""

import os
from pathlib import Path

import PIL.Image
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_owl import MINIATURE
from transformers_owl.demo.caption import SAMPLES
from transformers_owl.inference import Chat


ALLOWED = 16 * 2**20


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_thousand_requests_need_no_more_than_a_hundred():
    """Chats of two turns, with no image, one or two."""
    model, processor = AutoModelForImageTextToText.from_pretrained(MINIATURE), AutoProcessor.from_pretrained(MINIATURE)
    for number in range(1000):
        if number == 100:
            warm = resident()
        shown = [PIL.Image.open(SAMPLES[(number + more) % len(SAMPLES)]) for more in range(number % 3)]
        chat = Chat(model, processor)
        chat.ask("What is this?", shown, max_new_tokens=8)
        chat.ask("What can you do with it?", max_new_tokens=8)
    assert resident() < warm + ALLOWED
