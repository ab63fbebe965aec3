"""What commands and scripts share: errors, and the installation of missing packages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer


# How to install an extra of this package, which no index has yet.
INSTALL = (
    'in a clone of this project `pip install ".[{extra}]"`, or from its Git address '
    '`pip install "transformers-owl[{extra}] @ git+ADDRESS"`'
)


@contextmanager
def errors(extra: str | None = None, kept: str = "") -> Iterator[None]:
    """
    Ends the command with the message of an error that a user can cause, or of Ctrl-C. Also a decorator.

    Args:
        extra (`str`, *optional*): The extra that installs the packages of the command.
        kept (`str`): What an interrupted command keeps, and how to resume it.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"Interrupted. {kept}".rstrip(), err=True)
        raise typer.Exit(130) from None
    except (ImportError, MemoryError, OSError, ValueError) as error:
        missing = extra is not None and isinstance(error, ModuleNotFoundError)
        advice = f". This command needs more packages: {INSTALL.format(extra=extra)}" if missing else ""
        typer.echo(f"Error: {error}{advice}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def conversion(extra: str = "convert", kept: str = "") -> Iterator[None]:
    """As [`errors`], for commands on checkpoints: it also hides the library's progress bars, which ours replace."""
    with errors(extra, kept):
        from transformers.utils import logging

        logging.disable_progress_bar()
        yield


def run(command: Callable) -> None:
    """Runs a command as a script."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(command)
    app()
