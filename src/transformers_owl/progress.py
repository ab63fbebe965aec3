"""Progress of long work: a bar on a terminal, a line every 30 seconds in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


Item = TypeVar("Item")
SECONDS = 30  # between lines in a log


class SpeedColumn(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.3g} a second")


WHAT = (TextColumn("{task.description}"), BarColumn())
COUNTED = (*WHAT, MofNCompleteColumn(), SpeedColumn(), TimeRemainingColumn())
BYTES = (*WHAT, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())


class Bar(Progress):
    """
    A bar on stderr, removed at the end. Where stderr is no terminal, a line every 30 seconds takes its place.

    Args:
        columns (`ProgressColumn`): What the bar shows.
        unit (`str`): What is counted, such as "images".
        size (`float`): How much of what is counted makes one unit, such as 1e9 bytes.
        console (`Console`, *optional*): Where the bar is; a quiet one gets neither bar nor lines.
    """

    def __init__(self, *columns: ProgressColumn, unit: str = "", size: float = 1, console: Console | None = None):
        console = console or Console(stderr=True)
        super().__init__(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
        self.unit, self.size = unit, size
        self.said = time.monotonic()

    def start(self) -> None:
        if self.console.is_terminal:
            super().start()

    def stop(self) -> None:
        if self.console.is_terminal:
            super().stop()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._log(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._log(task_id)

    def _log(self, task_id: TaskID) -> None:
        now = time.monotonic()
        if not self.console.is_terminal and now - self.said >= SECONDS:
            self.said = now
            task = next(task for task in self.tasks if task.id == task_id)
            self.console.print(self._line(task), soft_wrap=True, highlight=False)

    def _line(self, task: Task) -> str:
        digits = 0 if self.size == 1 else 2
        done = f"{task.completed / self.size:,.{digits}f}"
        of = "" if task.total is None else f" of {task.total / self.size:,.{digits}f}"
        rate = "" if task.speed is None else f", {task.speed / self.size:.3g} a second"
        left = "" if task.time_remaining is None else f", {duration(task.time_remaining)} left"
        return f"{task.description}: {done}{of}{f' {self.unit}' if self.unit else ''}{rate}{left}"


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, else hours."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def track(
    items: Iterable[Item], what: str, total: int | None = None, unit: str = "", console: Console | None = None
) -> Iterator[Item]:
    """
    The items, counted while they are used.

    Args:
        items (iterable): Anything.
        what (`str`): What is done with them, such as "answering".
        total (`int`, *optional*): How many there are, where that is known.
        unit (`str`): What they are, such as "questions".
        console (`Console`, *optional*): Where the bar is.
    """
    with Bar(*COUNTED, unit=unit, console=console) as bar:
        task = bar.add_task(what, total=total)
        for item in items:
            yield item
            bar.advance(task)
