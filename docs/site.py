"""What mkdocs calls while it builds the site: a page of all commands, and no links to files outside the site."""

import re

import typer
from click import Context
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from transformers_owl_cli.commands import app


OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[^)]*\)")


def commands() -> str:
    """The help text of every command."""
    group = typer.main.get_command(app)
    parent = Context(group, info_name="transformers-owl", max_content_width=100, terminal_width=100)
    parts = ["# Commands", f"```text\n{group.get_help(parent)}\n```"]
    for name, command in group.commands.items():
        text = command.get_help(Context(command, parent=parent, info_name=name))
        parts.append(f"## {name}\n\n```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Links to files of the repository that are no pages become their text."""
    depth = page.file.src_uri.count("/")
    return OUTSIDE.sub(lambda link: link[0] if link[0].count("../") <= depth else link[1], markdown)
