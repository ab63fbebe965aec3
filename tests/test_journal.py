"""Captions, answers, ratings, judgements and logs survive kills, full disks, second writers and odd characters."""

import errno
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from transformers_owl.collections.engines import Settings
from transformers_owl.collections.inputs import Part
from transformers_owl.collections.outputs import Output
from transformers_owl.collections.running import caption
from transformers_owl.evaluation.answering import answer_questions
from transformers_owl.evaluation.judging import judge_owleval
from transformers_owl.evaluation.rating_desk import RatingDesk
from transformers_owl.evaluation.ratings import Mark
from transformers_owl.evaluation.records import Answers, Question, answer_row
from transformers_owl.journal import Journal, partial_of, read_rows


ODD = 'é 鴞 🦉 \u2028 \u2029 \x85 \x1e \r \n \ud83e " \\'
COUNT = 40
QUESTIONS = {number: Question(number, f"What is {number}? {ODD}", None, ("IU",)) for number in range(COUNT)}
SYSTEMS = {"owl": Answers(Path("owl.jsonl"), "owl", {number: f"{number} {ODD}" for number in QUESTIONS})}
FORK = multiprocessing.get_context("fork")


class Model:
    """Captions, answers and judges."""

    name = "model"
    batch_size = 2

    def prepare(self, item):
        return {"image": item.name}

    def answer(self, asked, prompt=None):
        return [self.say(each) if prompt is None else {"answer": self.say(each["image"])} for each in asked]

    def say(self, asked) -> str:
        if isinstance(asked, str):
            return f"{asked}: {ODD}"
        text = asked[0]["content"][-1]["text"]
        return '{"1": {"level": "B", "abilities": ["IU"]}}' if "JSON" in text else f"{text} {ODD}"


def captions(path: Path) -> Iterator[str]:
    files = tuple(f"{number} {ODD}" for number in range(COUNT))
    parts = [Part("files", files[0], files)]
    settings = Settings("model", ("Why?",))
    for row in caption(Model, settings, parts, Output(str(path), settings, parts)):
        yield row["image"]


def answers(path: Path) -> Iterator[str]:
    for question, _ in answer_questions(Model(), QUESTIONS, path, batch_size=2):
        yield str(question.question_id)


def ratings(path: Path) -> Iterator[str]:
    desk = RatingDesk(QUESTIONS, SYSTEMS, path)
    with desk.journal:
        for number in QUESTIONS:
            if desk.mark(ODD, number, "owl").level is None:
                desk.save(ODD, number, "owl", Mark("B", ("IU",)))
            yield str(number)


def judgements(path: Path) -> Iterator[str]:
    for sheet in judge_owleval(Model(), QUESTIONS, SYSTEMS, path, batch_size=2):
        yield f"{sheet.question_id} {sheet.rater}"


def logs(path: Path) -> Iterator[str]:
    with Journal(path) as journal:
        done = {row["step"] for _, row in journal.rows()}
        for step in range(COUNT):
            if step not in done:
                journal.append([{"step": step, "text": ODD}])
            yield str(step)


def key(row: dict) -> str:
    """What its user yields for a row."""
    if "image" in row:
        return row["image"]
    if "step" in row:
        return str(row["step"])
    judged = "rater" in row and row["rater"] != ODD
    return f"{row['question_id']} {row['rater']}" if judged else str(row["question_id"])


USERS = [captions, answers, ratings, judgements, logs]
ALL = pytest.mark.parametrize("user", USERS, ids=lambda user: user.__name__)


def rows(path: Path) -> list[dict]:
    """Of the file, whether it is whole or not; every reader of lines finds the same ones."""
    found = path if path.exists() else partial_of(path)
    if not found.exists():
        return []
    lines = found.read_bytes().decode().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    assert len(lines) - len(whole) <= 1
    return [json.loads(line) for line in whole]


def work(user: Callable, path: Path, told: int, size: int | None = None) -> None:
    """In a process of its own: tells what is done, a line each, and ends with 28 where the disk is full."""
    if size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        for done in user(path):
            os.write(told, json.dumps(done).encode() + b"\n")
    except OSError as error:
        os._exit(28 if error.errno in (errno.EFBIG, errno.ENOSPC) else 1)
    os._exit(0)


def run(user: Callable, path: Path, seconds: float | None = None, size: int | None = None) -> tuple[int, list[str]]:
    """The exit status, and what was said to be done; killed after some seconds."""
    reading, writing = os.pipe()
    process = FORK.Process(target=work, args=(user, path, writing, size))
    process.start()
    os.close(writing)
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    process.join()
    with os.fdopen(reading, "rb") as file:
        lines = file.read().split(b"\n")[:-1]
    return process.exitcode, [json.loads(line) for line in lines]


@pytest.fixture
def expected(tmp_path):
    def make(user: Callable) -> list[dict]:
        path = tmp_path / "at-once.jsonl"
        list(user(path))
        return rows(path)

    return make


@pytest.mark.parametrize("user", [captions, answers, judgements], ids=lambda user: user.__name__)
def test_a_resumed_run_says_how_much_is_done(user, tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    first = user(path)
    list(itertools.islice(first, 10))
    first.close()
    assert not caplog.messages
    done = len(rows(path))
    assert 10 <= done < COUNT
    list(user(path))
    (said,) = caplog.messages
    assert re.fullmatch(rf"Resuming an earlier run, already done: {done} (answers|ratings)\.", said)


@ALL
@pytest.mark.parametrize("least", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_what_was_done_outlives_kills(user, least, expected, tmp_path):
    at_once = expected(user)
    times = random.Random(0)
    begun = time.monotonic()
    list(user(tmp_path / "time.jsonl"))
    longest = time.monotonic() - begun + 0.02
    kills = 0
    for number in itertools.count():
        path = tmp_path / f"{number}.jsonl"
        said: list[str] = []
        status = -signal.SIGKILL
        while status:
            status, now = run(user, path, times.uniform(0, longest))
            kills += status == -signal.SIGKILL
            said += now
            assert set(said) <= {key(row) for row in rows(path)}
        assert rows(path) == at_once
        if kills >= least:
            break


@ALL
def test_a_second_writer_is_refused_and_the_first_is_whole(user, expected, tmp_path):
    at_once = expected(user)
    path = tmp_path / "answers.jsonl"
    first = user(path)
    for _ in range(COUNT // 2):
        next(first)
    before = rows(path)
    for second in (lambda: next(user(path)), lambda: next(user(path))):
        with pytest.raises(ValueError, match="is being written by another run: wait until it ends"):
            second()
    status, said = run(user, path)
    assert (status, said, rows(path)) == (1, [], before)
    list(first)
    assert rows(path) == at_once
    assert len(list(user(path))) >= COUNT  # nobody holds it


@ALL
@pytest.mark.parametrize("size", [1, 1000, 2222, 3001])
def test_a_full_disk_loses_nothing_that_was_done(user, size, expected, tmp_path):
    at_once = expected(user)
    path = tmp_path / "answers.jsonl"
    status, said = run(user, path, size=size)
    assert status == 28
    kept = rows(path)
    assert {key(row) for row in kept} == set(said)
    assert [len(kept), len(said)] < [len(at_once)] * 2
    assert run(user, path)[0] == 0
    assert rows(path) == at_once


@ALL
def test_a_line_that_was_cut_off_anywhere_is_made_anew(user, expected, tmp_path):
    """Also within a character."""
    at_once = expected(user)
    path = tmp_path / "answers.jsonl"
    first = user(path)
    for _ in range(4):
        next(first)
    first.close()
    found = path if path.exists() else partial_of(path)
    text = found.read_bytes()
    last = len(text[:-1].rpartition(b"\n")[0]) + 1
    for end in range(last, len(text), 7):
        found = path if found == path else partial_of(path)
        found.write_bytes(text[:end])
        list(user(path))
        assert rows(path) == at_once
        path.unlink()


def test_a_last_row_without_an_end_stays(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    with Journal(path) as journal:
        journal.append([{"step": 3}])
    assert [row["step"] for _, row in read_rows(path)] == [1, 2, 3]


def test_rows_of_a_failed_append_do_not_stay(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"

    def fail(*_):
        raise OSError(errno.EIO, "the disk is gone")

    with Journal(path) as journal:
        journal.append([{"step": 1}])
        with monkeypatch.context() as broken, pytest.raises(OSError, match="the disk is gone"):
            broken.setattr(os, "fsync", fail)
            journal.append([{"step": 2}])
        journal.append([{"step": 3}])
    assert [row["step"] for _, row in read_rows(path)] == [1, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"a": 1}\n{"a": "\xc3', "line 2 is not valid JSON"),
        (b'{"a": 1}\n[1]\n', "line 2 is a list, but must be a JSON object"),
        (b"[" * 100_000 + b"\n", "line 1 is not valid JSON"),
    ],
)
def test_files_of_another_form_are_named(content, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(path))


def test_rows_come_back(tmp_path):
    row = answer_row(Question(1, ODD, Path(f"cases/{ODD}")), ODD, ODD)
    with Journal(tmp_path / "answers.jsonl") as journal:
        journal.append([row])
        assert [back for _, back in journal.rows()] == [row]
