"""What commands and scripts share: how they fail, and what brings a package that is missing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer


# How to install an extra of this package, which no index has yet.
INSTALL = (
    'in a clone of this project `pip install ".[{extra}]"`, or from its Git address '
    '`pip install "transformers-owl[{extra}] @ git+ADDRESS"`'
)


@contextmanager
def errors(extra: str | None = None) -> Iterator[None]:
    """
    What a user can get wrong ends the command with its message. Also a decorator of a command.

    Args:
        extra (`str`, *optional*): The extra whose packages the command needs.
    """
    try:
        yield
    except (ImportError, MemoryError, OSError, ValueError) as error:
        missing = extra is not None and isinstance(error, ModuleNotFoundError)
        advice = f". This command needs more packages: {INSTALL.format(extra=extra)}" if missing else ""
        typer.echo(f"Error: {error}{advice}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def conversion(extra: str = "convert") -> Iterator[None]:
    """The same for what works on checkpoints, without the library's progress bars: ours show what takes long."""
    with errors(extra):
        from transformers.utils import logging

        logging.disable_progress_bar()
        yield


def run(command: Callable) -> None:
    """Runs a command by itself, as a script."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(command)
    app()
