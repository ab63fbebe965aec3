"""A run on this machine: answers in batches, and resuming."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

from ..journal import Journal, check_settings, log_resumed, partial_of, write_rows
from .engines import Settings
from .inputs import Part
from .outputs import Output, batches, check_earlier
from .reading import Item, Visual, blocks


Row = dict[str, Any]
Key = tuple[str, str]  # image and prompt
ON_ERROR = ("skip", "stop")


class Engine(Protocol):
    """An engine that answers. With a `batch_size` of None it takes whole blocks."""

    batch_size: int | None

    def prepare(self, item: Item) -> Visual | str: ...

    def answer(self, visuals: Sequence[Any], prompt: str) -> list[Row]: ...


class Count:
    """Number of items read, and an estimate of their total, assuming shards of one size."""

    def __init__(self, parts: Iterable[Part]):
        sizes = [len(part.files) or part.rows[1] - part.rows[0] for part in parts]
        self.known = sum(sizes)
        self.unknown = sizes.count(0)
        self.read = self.ended = self.in_ended = 0

    def end(self, part: Part, items: int) -> None:
        """Counts a part that was read to its end."""
        if not part.files and part.kind != "dataset":
            self.ended += 1
            self.in_ended += items

    @property
    def total(self) -> int | None:
        """The estimated total; `None` before the first shard is read."""
        if self.unknown and not self.ended:
            return None
        guessed = round(self.in_ended * self.unknown / self.ended) if self.unknown else 0
        return max(self.read, self.known + guessed)


def caption(
    load: Callable[[], Engine],
    settings: Settings,
    parts: list[Part],
    output: Output | None = None,
    append: bool = False,
    on_error: str = "skip",
    count: Count | None = None,
) -> Iterator[Row]:
    """
    Yields a row for every question about every image, those of earlier runs first, and `{"image", "error"}` for
    unreadable items. Existing answers are kept. An interrupted run leaves `NAME.partial`, from which the next one
    resumes.

    Args:
        load (`Callable`): Loads the engine, after all checks.
        settings ([`Settings`]): Settings of the run.
        parts (`list[Part]`): Parts to answer about.
        output ([`Output`], *optional*): Output for the rows.
        append (`bool`): Whether the output may hold other answers, which are kept.
        on_error (`str`): "skip" continues after an unreadable item, "stop" raises.
        count ([`Count`], *optional*): Updated during the run.

    Raises:
        ValueError: if the output holds other answers, if another run writes it, and for an unreadable item if
            `on_error` is "stop".
    """
    count = Count(parts) if count is None else count
    failures: list[Row] = []
    with nullcontext() if output is None else Journal(partial_of(Path(output.record))) as journal:
        done: set[Key] = set()
        if journal is not None and output is not None:
            check_no_blocks(output)
            done = resume(output, journal, append)
            yield from (row for _, row in journal.rows() if (row["image"], row["prompt"]) in done)
        engine: Engine | None = None
        for part in parts:
            for start, block, is_last in blocks(part):
                left = [item for item in block if not all((item.name, prompt) in done for prompt in settings.prompts)]
                count.read += len(block) - len(left)
                if left and engine is None:
                    engine = load()
                for rows, items in _answers(engine, settings, left, done):
                    count.read += items
                    for each in rows:
                        if "error" in each:
                            refuse(each, on_error)
                            failures.append(each)
                    if journal is not None:
                        journal.append(each for each in rows if "error" not in each)
                    yield from rows
                if is_last:
                    count.end(part, start + len(block))
        if journal is not None and output is not None:
            output.finish(journal)
            list_failures(output, failures)


def _answers(
    engine: Engine | None, settings: Settings, items: list[Item], done: set[Key]
) -> Iterator[tuple[list[Row], int]]:
    """Rows of a block by batch, with the number of items."""
    if engine is None:
        return
    shown: list[tuple[str, Any]] = []
    size = engine.batch_size or max(1, len(items))
    for item in items:
        visual = engine.prepare(item)
        if isinstance(visual, str):
            yield [{"image": item.name, "error": visual}], 1
            continue
        shown.append((item.name, visual))
        if len(shown) == size:
            yield answer_batch(engine, settings, shown, done), len(shown)
            shown = []
    if shown:
        yield answer_batch(engine, settings, shown, done), len(shown)


def answer_batch(engine: Engine, settings: Settings, shown: list[tuple[str, Any]], done: set[Key]) -> list[Row]:
    """Answers to every prompt about every image that are not done yet, by image, then by prompt."""
    rows: dict[Key, Row] = {}
    for prompt in settings.prompts:
        left = [(name, visual) for name, visual in shown if (name, prompt) not in done]
        answers = engine.answer([visual for _, visual in left], prompt) if left else []
        for (name, _), answer in zip(left, answers, strict=True):
            rows[name, prompt] = {"image": name, "model": settings.model, "prompt": prompt, **answer}
    keys = ((name, prompt) for name, _ in shown for prompt in settings.prompts)
    return [rows[key] for key in keys if key in rows]


def answer_block(engine: Engine, settings: Settings, shown: list[tuple[str, Any]], done: set[Key]) -> list[Row]:
    """Rows of a block that was decoded elsewhere, in the same batches as in a run on this machine."""
    rows = [{"image": name, "error": visual} for name, visual in shown if isinstance(visual, str)]
    good = [(name, visual) for name, visual in shown if not isinstance(visual, str)]
    for some in batches(good, engine.batch_size or max(1, len(good))):
        rows += answer_batch(engine, settings, some, done)
    return rows


def resume(output: Output, journal: Journal, append: bool) -> set[Key]:
    """
    Copies the answers of an earlier output to the journal.

    Returns:
        `set[Key]`: Images and prompts that are already answered.

    Raises:
        ValueError: for other answers, unless `append`.
    """
    check_earlier_output(output, append)
    settings, parts = output.settings, output.parts
    advice = f"finish that run, choose another --output, or delete {journal.path}."
    there = {
        (row["image"], row["prompt"], row["model"])
        for row in check_earlier(journal.rows(), settings, parts, append, advice)
    }
    check_answering(output, is_new=append or not (there or output.exists()))
    if output.exists():
        for rows in batches((row for _, row in output.rows()), 1000):
            new = [row for row in rows if (row["image"], row["prompt"], row["model"]) not in there]
            journal.append(new)
            there |= {(row["image"], row["prompt"], row["model"]) for row in new}
    done = {(image, prompt) for image, prompt, model in there if model == settings.model}
    log_resumed(len(done), "answers")
    return done


def check_earlier_output(output: Output, append: bool) -> None:
    """Raises a ValueError for an output of another run, unless `append`, and for captions without a run's record."""
    output.check_foreign()
    if output.exists():
        advice = "choose another --output, or keep these answers and add the new ones by --append."
        for _ in check_earlier(output.rows(), output.settings, output.parts, append, advice):
            pass


def check_answering(output: Output, is_new: bool) -> None:
    """Raises a ValueError if the answers of an output were made with other settings, unless it `is_new`."""
    advice = "Choose another --output, or keep the existing answers and add the missing ones by --append."
    check_settings(output.record, output.settings.answering, is_new, advice)


def check_no_blocks(output: Output) -> None:
    """Raises a ValueError if a run on Ray is unfinished."""
    if Path(f"{output.record}.blocks").exists():
        raise ValueError(
            f"{output.record}.blocks holds an unfinished run on Ray: resume it by --ray, choose another --output, or "
            "delete that folder."
        )


def refuse(failure: Row, on_error: str) -> None:
    """Raises a ValueError for an unreadable item if `on_error` is "stop"."""
    if on_error == "stop":
        raise ValueError(f"{failure['image']}: {failure['error']}")


def list_failures(output: Output, failures: list[Row]) -> None:
    """Lists unreadable items in `NAME.errors.jsonl` beside the output, or removes an old list if there are none."""
    path = failures_of(output)
    if failures:
        write_rows(path, failures)
    else:
        path.unlink(missing_ok=True)


def failures_of(output: Output) -> Path:
    """The path of the list of unreadable items."""
    return Path(f"{output.record}.errors.jsonl")
