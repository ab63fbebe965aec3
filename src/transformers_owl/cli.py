"""The console command `transformers-owl`. Heavy imports happen inside the commands."""

import sys
from pathlib import Path
from typing import Annotated

import typer


app = typer.Typer(
    help="mPLUG-Owl: a language model that sees.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def main() -> None:
    pass


@app.command()
def caption(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="Picture files or URLs.")],
    model: Annotated[str, typer.Option(help="Folder or Hub repository; one of the original release works as it is.")],
    prompt: Annotated[str, typer.Option(help="What to ask about every picture.")] = "Describe the picture.",
    output: Annotated[Path | None, typer.Option(help="Also write the answers to this JSON Lines file.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures answered together.")] = 8,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer (default: the model's).")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu (default: the best there is).")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights, such as bfloat16.")] = "auto",
) -> None:
    """Ask one question about pictures and print the answers."""
    from rich.console import Console
    from rich.progress import Progress

    import transformers_owl  # noqa: F401  (registers the Auto classes)

    from .demo.caption import Captioner
    from .demo.caption import caption as answers

    try:
        captioner = Captioner(model, device, dtype)
        with Progress(console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
            task = progress.add_task("answering", total=len(set(pictures)))
            for picture, answer in answers(captioner, pictures, prompt, output, batch_size, max_new_tokens):
                print(f"{picture}: {answer}")
                progress.advance(task)
    except (OSError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[--NAME VALUE ...]",
)
def train(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Argument(help="A YAML file as in configs/.", show_default=False)] = None,
) -> None:
    """
    Train after a recipe: pretrain, or tune on conversations. An interrupted run goes on from its last checkpoint.

    Every name of a recipe is an option too, and so is every name of transformers.TrainingArguments:
    --model FOLDER --learning_rate 1e-4 --max_steps 1000 --output_dir build/run. docs/training.md lists ours.
    """
    import transformers_owl  # noqa: F401  (registers the Auto classes)

    options = context.args
    if recipe is not None and str(recipe).startswith("--"):
        recipe, options = None, [str(recipe), *options]
    try:
        from .training.train import train as run

        run(recipe, options)
    except ModuleNotFoundError as error:
        typer.echo(f'Error: {error}. Training needs more packages: pip install "transformers-owl[train]"', err=True)
        raise typer.Exit(1) from error
    except (OSError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
    options_metavar="MODEL [OPTIONS]",
)
def serve(context: typer.Context) -> None:
    """Answer OpenAI-style requests over HTTP: `transformers serve` with mPLUG-Owl known to it."""
    from transformers.cli.serve import Serve

    import transformers_owl  # noqa: F401  (registers the Auto classes)

    library = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    library.command()(Serve)
    try:
        library(context.args, prog_name="transformers-owl serve", standalone_mode=False)
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
