"""The conversation as HTML. Markdown of answers is rendered; HTML in questions and answers is escaped."""

import html
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from markdown_it import MarkdownIt

from ..mplug_owl.video_processing_mplug_owl import media_type
from .conversation import Turn


MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable("image")
WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")


def render(turns: Sequence[Turn], looks: bool = False) -> str:
    """
    Renders all turns.

    Args:
        turns (`Sequence[Turn]`): The conversation.
        looks (`bool`, defaults to `False`): Whether the page offers attention maps.
    """
    shown, sees = [], False
    for number, turn in enumerate(turns):
        is_last = number == len(turns) - 1
        if turn["role"] == "user":
            sees |= bool(turn["files"])
            shown.append(_question(turn))
        elif turn["role"] == "assistant":
            shown.append(_answer(turn, number, looks and sees, is_last))
        else:
            shown.append(
                f'<article class="turn error" role="alert"><p>{html.escape(turn["text"])}</p>'
                f'<div class="tools">{_button("retry", "Retry")}{_button("clear", "Clear")}</div></article>'
            )
    return "".join(shown)


def render_answer(text: str, has_places: bool = False) -> str:
    """Renders an answer's Markdown. With `has_places`, every word carries its position in the text."""
    tokens = MARKDOWN.parse(text)
    at = 0
    for token in (child for block in tokens for child in block.children or ()):
        if token.type == "text" and has_places:
            token.type, token.tag, token.meta = "word_list", "", {"from": at}
            at = _skip(text, token.content, at)
    return MARKDOWN.renderer.render(tokens, MARKDOWN.options, {"text": text})


def _skip(text: str, words: str, at: int) -> int:
    for word in WORD.findall(words):
        at = max(at, text.find(word, at) + len(word))
    return at


def _words(renderer, tokens, index, options, env) -> str:
    token = tokens[index]
    return mark_words(token.content, env["text"], token.meta["from"], "span")


MARKDOWN.add_render_rule("word_list", _words)


def mark_words(words: str, text: str, at: int = 0, tag: str = "button") -> str:
    """Wraps each word in an element with its position in `text`, searching from `at` on."""
    shown, last = [], 0
    for found in WORD.finditer(words):
        start = text.find(found[0], at)
        at = start + len(found[0])
        shown.append(html.escape(words[last : found.start()]))
        shown.append(f'<{tag} class="word" data-do="look" data-span="{start},{at}">{html.escape(found[0])}</{tag}>')
        last = found.end()
    return "".join([*shown, html.escape(words[last:])])


def _question(turn: Turn) -> str:
    seen = "".join(show_file(Path(file["path"])) for file in turn["files"])
    files = f'<div class="files">{seen}</div>' if seen else ""
    return (
        f'<article class="turn user" aria-label="Question">{files}<div class="said">{html.escape(turn["text"])}</div>'
        "</article>"
    )


def show_file(path: Path) -> str:
    name = html.escape(path.name, quote=True)
    address = f"gradio_api/file={urllib.parse.quote(str(path))}"
    if media_type(path).startswith("video/"):
        return f'<video src="{address}" controls muted playsinline preload="metadata" aria-label="{name}"></video>'
    return f'<img src="{address}" alt="{name}">'


def _answer(turn: Turn, number: int, looks: bool, is_last: bool) -> str:
    text = render_answer(turn["text"], looks) if turn["text"].strip() else '<p class="quiet">(no words)</p>'
    note = f'<p class="quiet">{html.escape(turn["note"])}</p>' if turn.get("note") else ""
    buttons = [_button("copy", "Copy")]
    buttons += [_button("look", "Where it looked")] if looks and turn["text"].strip() else []
    buttons += [_button("retry", "Retry"), _button("undo", "Undo"), _button("clear", "Clear")] if is_last else []
    return (
        f'<article class="turn owl" aria-label="Answer" data-turn="{number}" '
        f'data-text="{html.escape(turn["text"], quote=True)}"><div class="markdown">{text}</div>{note}'
        f'<div class="tools">{"".join(buttons)}</div></article>'
    )


def _button(does: str, name: str) -> str:
    return f'<button type="button" data-do="{does}">{name}</button>'
