"""Tables as text, CSV and images."""

import csv
import io
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..journal import aside
from .rubric import LEVELS


WIDTH = 170  # characters of a table where there is no terminal
# From best to worst, told apart without colour vision; then what is no level.
COLOURS = {
    "A": "#1b4f8a",
    "B": "#6fa8dc",
    "C": "#f4b860",
    "D": "#c0392b",
    "no answer": "#bbbbbb",
    "no rating": "#e4e4e4",
}


@dataclass(frozen=True)
class Value:
    """A number, with the bounds of its 95 % interval if there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        ends = "" if self.low is None or self.high is None else f" [{_short(self.low)}, {_short(self.high)}]"
        return _short(self.value) + ends


@dataclass(frozen=True)
class Row:
    """One system's numbers; `source` is "measured" or "paper"."""

    system: str
    values: Sequence[Value | None]
    source: str = "measured"

    @property
    def label(self) -> str:
        return self.system if self.source == "measured" else f"{self.system} (paper)"


@dataclass(frozen=True)
class Table:
    """One of the paper's figures or tables, as numbers; `unit` is the common unit of all columns."""

    name: str
    title: str
    columns: list[str]
    rows: list[Row]
    unit: str = ""

    def as_text(self, width: int = WIDTH) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Column
        from rich.table import Table as RichTable

        table = RichTable(
            Column("", no_wrap=True), *self.columns, box=box.SIMPLE_HEAD, title=self.title, title_justify="left"
        )
        for row in self.rows:
            table.add_row(row.label, *("" if value is None else str(value) for value in row.values))
        file = io.StringIO()
        Console(file=file, width=width, color_system=None).print(table)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n") + "\n"

    def as_csv(self) -> str:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        ends = [name for column in self.columns for name in (column, f"{column} low", f"{column} high")]
        writer.writerow(["system", "source", *ends])
        for row in self.rows:
            cells = [(value.value, value.low, value.high) if value else (None,) * 3 for value in row.values]
            writer.writerow([row.system, row.source, *(cell for three in cells for cell in three)])
        return file.getvalue()

    def as_image(self, suffix: str) -> bytes:
        """
        Draws counts as stacked bars, other tables as points with intervals; the paper's figures are hollow.

        Args:
            suffix (`str`): "png" or "svg".
        """
        from matplotlib.figure import Figure

        height = 1.4 + 0.42 * len(self.rows)
        if self.name.startswith("figure"):
            figure = Figure(figsize=(9, height), layout="constrained")
            self._bars(figure.subplots())
        else:
            figure = Figure(figsize=(2.6 + 2 * len(self.columns), height), layout="constrained")
            self._points(figure.subplots(1, len(self.columns), sharex=bool(self.unit), sharey=True, squeeze=False)[0])
        figure.suptitle(self.title, x=0.01, ha="left", fontsize=11)
        file = io.BytesIO()
        figure.savefig(file, dpi=150, format=suffix)
        return file.getvalue()

    def _bars(self, axes) -> None:
        for place, row in enumerate(self.rows):
            counts = {name: value.value for name, value in zip(self.columns, row.values, strict=True) if value}
            if row.source == "paper":
                axes.barh(place, counts["A and B"], fill=False, linestyle=":", height=0.7)
                axes.text(
                    counts["A and B"] / 2, place, f"A and B: {_short(counts['A and B'])}", ha="center", va="center"
                )
                continue
            left = 0.0
            for name, colour in COLOURS.items():
                meaning = f"{name}: {LEVELS[name].rstrip('.')}" if name in LEVELS else name
                label = meaning if place == 0 else None
                axes.barh(place, counts[name], left=left, color=colour, height=0.7, label=label)
                if counts[name] >= 2:
                    ink = "white" if name in "AD" else "black"
                    axes.text(left + counts[name] / 2, place, _short(counts[name]), ha="center", va="center", color=ink)
                left += counts[name]
            axes.set_xlim(0, left)
        axes.set_yticks(range(len(self.rows)), [row.label for row in self.rows])
        axes.set_xlabel("answers")
        axes.invert_yaxis()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)

    def _points(self, panels) -> None:
        for index, (axes, column) in enumerate(zip(panels, self.columns, strict=True)):
            for place, row in enumerate(self.rows):
                value = row.values[index]
                if value is None or math.isnan(value.value):
                    continue
                if value.low is not None:
                    axes.plot([value.low, value.high], [place, place], color=COLOURS["B"], linewidth=3)
                face = COLOURS["A"] if row.source == "measured" else "white"
                axes.plot(value.value, place, "o", markerfacecolor=face, markeredgecolor=COLOURS["A"], markersize=6)
                at = (value.value, place)
                axes.annotate(_short(value.value), at, (0, 6), textcoords="offset points", ha="center", fontsize=8)
            axes.set_title(column, fontsize=9)
            axes.margins(x=0.25)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", color="#eeeeee")
            axes.spines[["top", "right", "left"]].set_visible(False)
        panels[0].set_yticks(range(len(self.rows)), [row.label for row in self.rows])
        panels[0].set_ylim(len(self.rows) - 0.5, -0.7)
        panels[len(panels) // 2].set_xlabel(self.unit)
        dots = {"measured": COLOURS["A"], "paper": "white"}
        handles = [
            panels[0].plot([], [], "o", markerfacecolor=face, markeredgecolor=COLOURS["A"], label=source)[0]
            for source, face in dots.items()
        ]
        (interval,) = panels[0].plot([], [], color=COLOURS["B"], linewidth=3, label="95 % interval")
        panels[0].figure.legend(handles=[*handles, interval], loc="outside lower center", ncols=3, frameon=False)


def write_tables(tables: list[Table], notes: list[str], folder: Path) -> str:
    """
    Writes each table as CSV, PNG and SVG, and all of them with the notes as `scores.txt`. Returns that text in the
    width of the terminal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        _write(folder / f"{table.name}.csv", table.as_csv().encode())
        for suffix in ("png", "svg"):
            _write(folder / f"{table.name}.{suffix}", table.as_image(suffix))
    wide, narrow = (
        "\n".join([*(table.as_text(width) for table in tables), *notes]) + "\n"
        for width in (WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)
    )
    _write(folder / "scores.txt", wide.encode())
    return narrow


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _write(path: Path, content: bytes) -> None:
    with aside(path) as file:
        file.write(content)
