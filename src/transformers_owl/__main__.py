"""`python -m transformers_owl` is the command `transformers-owl`."""

from transformers_owl_cli.commands import app


if __name__ == "__main__":
    app(prog_name="transformers-owl")
