"""The command `caption`: its checks before a run, and its progress and summary."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer


if TYPE_CHECKING:
    from transformers_owl.collections.engines import Settings
    from transformers_owl.collections.inputs import Part
    from transformers_owl.collections.outputs import Output
    from transformers_owl.collections.running import Count


def read_prompts(path: Path) -> tuple[str, ...]:
    """The non-empty lines of a file."""
    return tuple(line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip())


def check(settings: "Settings", output: str | None, on_error: str, ray: str | None, workers: int | None) -> None:
    """Raises a ValueError for invalid options and conflicts between them."""
    from transformers_owl.collections.running import ON_ERROR

    settings.check()
    if on_error not in ON_ERROR:
        raise ValueError(f"--on-error is {on_error!r}, but must be one of {', '.join(ON_ERROR)}.")
    if ray is None:
        if workers is not None:
            raise ValueError("--workers needs a run on Ray: add --ray local, or leave it out.")
        if output is not None and "://" in output:
            raise ValueError(f"{output} is a URL, which only a run on Ray can write to: add --ray, or name a file.")
        return
    if ray not in ("local", "auto") and not ray.startswith("ray://"):
        raise ValueError(f"--ray is {ray!r:.100}, but must be local, auto or ray://HOST:PORT.")
    if output is None:
        raise ValueError("A run on Ray needs --output, since it does not print its answers.")


def run(
    settings: "Settings",
    parts: "list[Part]",
    output: str | None,
    append: bool,
    on_error: str,
    ray: str | None,
    workers: int | None,
) -> None:
    """Answers about the parts, with a progress bar."""
    from transformers_owl.collections.outputs import Output
    from transformers_owl.collections.running import Count, caption

    settings = replace(settings, images=sum(len(part.files) or part.rows[1] - part.rows[0] for part in parts))
    target = None if output is None else Output(output, settings, parts)
    count = Count(parts)
    rows: Iterable[dict[str, Any]]
    if ray is None or target is None:
        rows = caption(settings.load, settings, parts, target, append, on_error, count)
    else:
        from transformers_owl.collections.on_ray import caption_on_ray

        rows = caption_on_ray(settings, parts, target, ray, workers, append, on_error, count)
    answered, failures = 0, []
    try:
        for row in shown(rows, count):
            if "error" in row:
                failures.append(row)
                typer.echo(f"{row['image']}: {row['error']}".encode(errors="backslashreplace").decode(), err=True)
                continue
            answered += 1
            if "answer" in row:
                print(line(row, settings).encode(errors="backslashreplace").decode())
    except KeyboardInterrupt:
        kept = "" if target is None else " The same command resumes the run."
        typer.echo(f"Interrupted after {count.read} images.{kept}", err=True)
        raise typer.Exit(130) from None
    if target is not None:
        typer.echo(f"{count.read} images; the answers are in {target.record}.", err=True)
    report(answered, failures, target)


def line(row: dict[str, Any], settings: "Settings") -> str:
    """A printed answer, with the prompt if there are several, and with likelihoods."""
    from transformers_owl.collections.engines import LIKELIHOOD

    asked = f" {row['prompt']}" if len(settings.prompts) > 1 else ""
    found = ", ".join(f"{text} {row[f'{LIKELIHOOD}{text}']:.3f}" for text in settings.score)
    return f"{row['image']}:{asked} {row['answer']}{f' ({found})' if found else ''}"


def shown(rows: Iterable[dict[str, Any]], count: "Count") -> Iterator[dict[str, Any]]:
    """The rows, with a progress bar of their images."""
    from transformers_owl.progress import COUNTED, Bar

    with Bar(*COUNTED, unit="images") as bar:
        task = bar.add_task("answering", total=count.total)
        for row in rows:
            yield row
            bar.update(task, completed=count.read, total=count.total)


def report(answered: int, failures: list[dict[str, Any]], output: "Output | None") -> None:
    """
    Prints the number of unreadable files.

    Raises:
        ValueError: if none could be read.
    """
    if not failures:
        return
    if not answered:
        raise ValueError(f"None of the files could be read. {failures[0]['image']}: {failures[0]['error']}")
    from transformers_owl.collections.running import failures_of

    where = "" if output is None else f": see {failures_of(output)}"
    typer.echo(f"{len(failures)} files could not be read{where}.", err=True)
