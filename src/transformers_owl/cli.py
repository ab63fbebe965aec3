"""The console command `transformers-owl`, by the name that it had before it got a package of its own."""

from transformers_owl_cli.commands import app


__all__ = ["app"]
