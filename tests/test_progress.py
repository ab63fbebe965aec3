import re

import pytest

from transformers_owl import progress
from transformers_owl.progress import BYTES, Bar, duration, track


@pytest.fixture
def minute(monkeypatch):
    """Lines after every step."""
    monkeypatch.setattr(progress, "SECONDS", 0)


@pytest.mark.parametrize(("total", "of"), [(None, ""), (3, " of 3")])
def test_a_log_gets_lines(minute, capsys, total, of):
    assert list(track("abc", "answering", total, "questions")) == ["a", "b", "c"]
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        assert re.match(rf"answering: {number}{of} questions(, \S+ a second)?(, \d+ s left)?$", line), line


def test_lines_come_every_30_seconds(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    bar = Bar(*BYTES, unit="GB", size=1e9)
    task = bar.add_task("writing", total=14e9)
    for _ in range(13):
        now += 10
        bar.advance(task, 1e9)
    said = re.findall(r"writing: (\S+) of 14.00 GB", capsys.readouterr().err)
    assert said == ["3.00", "6.00", "9.00", "12.00"]


def test_nothing_is_said_of_short_work(capsys):
    assert list(track(range(1000), "answering", 1000)) == list(range(1000))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (119, "119 s"), (121, "2 min"), (7199, "120 min"), (7200, "2 h"), (1e6, "278 h")],
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown
