"""The page for rating answers: blind, in random order, by mouse or keyboard, saved at every click."""

import csv
import html
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from .. import pages
from .answering import earlier_turns
from .rating_desk import RatingDesk
from .ratings import Mark
from .records import Answers, Question
from .rubric import ABILITIES, LEVELS


PAGE = Path(__file__).parent / "page"
# Every event is taken, one after the other: by default an event is dropped while the one before it is on its way.
LANE: dict[str, Any] = {
    "trigger_mode": "multiple",
    "concurrency_id": "desk",
    "concurrency_limit": 1,
    "show_progress": "hidden",
    "api_visibility": "private",
}
VIEWS = itertools.count()  # each view is another one, also of the same question
KEYS = (
    '<div class="keys"><kbd>A</kbd> to <kbd>D</kbd> rate the framed answer, <kbd>1</kbd> to <kbd>6</kbd> mark its '
    "abilities, <kbd>J</kbd> and <kbd>K</kbd> go to the next and the previous answer, <kbd>N</kbd> and <kbd>P</kbd> to "
    "the next and the previous question, <kbd>O</kbd> to the next one with an answer that is not rated.</div>"
)
INSTRUCTIONS = (
    '<div class="words"><h1>Rate answers about images</h1></div><div class="quiet"><p>Each question shows an image and '
    "the answers of several systems, in random order, without their names. Give every answer a level, and mark which "
    "of the needed abilities it shows. Every click is saved at once; enter the same name to continue later.</p>"
    "<dl>{levels}</dl>{keys}</div>"
)


def _levels() -> str:
    return "".join(f"<dt>{level}</dt><dd>{meaning}</dd>" for level, meaning in LEVELS.items())


def build_page(desk: RatingDesk) -> gr.Blocks:
    """Builds the page, to be served with the files in `PAGE`."""
    # The question's id travels with every event: a click that is still on its way belongs to what its rater saw.
    with gr.Blocks(title="OwlEval: rate answers", analytics_enabled=False, fill_width=True) as page:
        number = gr.Number(visible=False, precision=0)
        with gr.Column() as entrance:
            gr.HTML(INSTRUCTIONS.format(levels=_levels(), keys=KEYS))
            rater = gr.Textbox(label="Your name", info="Ratings are saved under it; enter it again to continue.")
            notice = gr.HTML()
            start = gr.Button("Start", variant="primary")
            with gr.Row(visible=False) as doubt:
                same, other = gr.Button("That is me: go on", variant="primary"), gr.Button("I am somebody else")
        with gr.Column(visible=False, elem_id="sheet") as sheet:
            progress = gr.HTML()
            with gr.Row(elem_classes="split"):
                with gr.Column(scale=2, min_width=300, elem_classes="subject"):
                    image = gr.Image(
                        show_label=False, interactive=False, buttons=["fullscreen"], alt_text="The image",
                        elem_id="image",
                    )  # fmt: skip
                    asked = gr.HTML()
                with gr.Column(scale=3, min_width=300):
                    cards = [_card() for _ in desk.systems]
            ways, to = _moves(desk)
            _add_export(desk, rater)
        view: list[Any] = [number, progress, image, asked, *(part for card in cards for part in card)]

        def show(name: str, shown: int) -> list[Any]:
            return _view(desk, name, shown, len(cards))

        def enter(name: str, known: str | None) -> list[Any]:
            opened = [gr.update(visible=False), gr.update(visible=True), known or name, "", gr.update(visible=False)]
            return opened + show(known or name, desk.open_question(known or name))

        def begin(name: str) -> list[Any]:
            name = " ".join(name.split())
            known = desk.same_rater(name)
            if name and known in (None, name):
                return enter(name, None)
            what = (
                f"{known} has already rated answers. Is that you?"
                if known
                else "Enter your name: ratings are saved under it."
            )
            closed = [gr.skip(), gr.skip(), gr.skip(), _notice(what), gr.update(visible=bool(known))]
            return closed + [gr.skip() for _ in view]

        opening = [entrance, sheet, rater, notice, doubt, *view]
        gr.on([start.click, rater.submit], begin, [rater], opening, **LANE)
        same.click(lambda name: enter(name, desk.same_rater(" ".join(name.split()))), [rater], opening, **LANE)
        other.click(lambda name: enter(" ".join(name.split()), None), [rater], opening, **LANE)
        for clicked, way in ways:
            clicked(
                lambda name, shown, place, way=way: show(name, way(name, shown, place)),
                [rater, number, to],
                view,
                **LANE,
            )
        _save_clicks(desk, cards, rater, number, progress)
    return page


def _save_clicks(
    desk: RatingDesk, cards: Sequence[tuple], rater: gr.Textbox, number: gr.Number, progress: gr.HTML
) -> None:
    """Saves what is clicked, unless something clicked later on the same answer has overtaken it on the way here."""
    clicks, latest = gr.Number(visible=False), dict[tuple[str | None, int, int], int]()
    for place, (_, _, level, abilities) in enumerate(cards):

        def save(name, shown, level, abilities, click, request: gr.Request, place=place):
            answer = (request.session_hash, shown, place)
            if click > latest.get(answer, 0):
                latest[answer] = click
                desk.save(name, shown, desk.order(name, shown)[place], Mark(level, tuple(abilities)))
            return _small(desk.progress(name, shown))

        said = [rater, number, level, abilities, clicks]
        counted = "(...said) => [...said.slice(0, 4), window.clicks = (window.clicks ?? 0) + 1]"
        gr.on([level.input, abilities.input], save, said, [progress], js=counted, **LANE)


def _moves(desk: RatingDesk) -> tuple[list[tuple[Any, Callable[[str, int, int | None], int]]], gr.Number]:
    """The navigation: events, each with the function that gives its question, and the number field."""
    with gr.Row():
        previous = gr.Button("Previous question", elem_id="previous")
        following = gr.Button("Next question", elem_id="next", variant="primary")
        still_open = gr.Button("Next open question", elem_id="open")
    with gr.Row(equal_height=True):
        to = gr.Number(label="Go to question", info=f"1 to {len(desk.questions)}", precision=0)
        jump = gr.Button("Go", elem_id="jump")
    ways: list[tuple[Any, Callable[[str, int, int | None], int]]] = [
        (previous.click, lambda name, shown, _: desk.neighbour(shown, -1)),
        (following.click, lambda name, shown, _: desk.neighbour(shown, 1)),
        (still_open.click, lambda name, shown, _: desk.open_question(name, shown)),
        (jump.click, lambda name, shown, place: desk.at(place, shown)),
    ]
    return ways, to


def _add_export(desk: RatingDesk, rater: gr.Textbox) -> None:
    """Adds the export of a rater's own ratings, without names of systems."""
    with gr.Accordion("Ratings so far", open=False):
        with gr.Row():
            count, export = gr.Button("Agreement of all raters"), gr.Button("My ratings as a file")
        said, file = gr.HTML(), gr.File(visible=False, label="My ratings")

        def write(name: str) -> Any:
            path = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / "ratings.csv"
            with path.open("w", newline="", encoding="utf-8") as opened:
                csv.writer(opened).writerows([("question", "answer", "level", "abilities"), *desk.rated(name)])
            return gr.update(value=str(path), visible=True)

        count.click(lambda: _small(desk.agreement()), None, said, **LANE)
        export.click(write, [rater], file, **LANE)


def _notice(text: str) -> str:
    return f'<p class="notice" role="alert">{html.escape(text)}</p>'


def _card() -> tuple[gr.Column, gr.HTML, gr.Radio, gr.CheckboxGroup]:
    with gr.Column(elem_classes="card") as card:
        words = gr.HTML()
        level = gr.Radio(list(LEVELS), label="Level", container=False)
        abilities = gr.CheckboxGroup([], label="Abilities that the answer shows", container=False)
    return card, words, level, abilities


def _view(desk: RatingDesk, rater: str, number: int, places: int) -> list[Any]:
    """The values of one question's components, in order."""
    question = desk.questions[number]
    view: list[Any] = [number, _small(desk.progress(rater, number)), str(question.image), _asked(question, desk)]
    names = desk.order(rater, number)
    choices = [(f"{place} {ABILITIES[name][0]}", name) for place, name in enumerate(question.abilities, 1)]
    for place, name in enumerate(names, 1):
        mark = desk.mark(rater, number, name)
        words = _answer(place, question, desk.systems[name], desk.questions)
        view += [gr.update(visible=True), words, mark.level, gr.update(choices=choices, value=list(mark.abilities))]
    for _ in range(places - len(names)):
        view += [gr.update(visible=False), "", None, gr.update(choices=[], value=[])]
    return view


def _asked(question: Question, desk: RatingDesk) -> str:
    before = "".join(
        f'<div class="earlier">{html.escape(turn.text)}</div>' for turn in earlier_turns(question, desk.questions)
    )
    intro = f'<div class="quiet">Earlier questions about this image:</div>{before}' if before else ""
    needed = "".join(f"<dt>{ABILITIES[name][0]}</dt><dd>{ABILITIES[name][1]}</dd>" for name in question.abilities)
    return (
        f'<div data-view="{next(VIEWS)}" data-question="{question.question_id}">{intro}'
        f'<div class="words"><h2>{html.escape(question.text)}</h2></div>'
        f'<div class="quiet"><dl>{_levels()}</dl>Abilities that this question needs:'
        f'<dl class="needed">{needed}</dl>{KEYS}</div></div>'
    )


def _answer(place: int, question: Question, answers: Answers, questions: dict[int, Question]) -> str:
    earlier = "".join(
        f'<div class="earlier quiet">{html.escape(turn.text)}\n'
        f"{html.escape(answers.texts[turn.question_id] or '(no answer)')}</div>"
        for turn in earlier_turns(question, questions)
    )
    before = f"<details><summary>Its earlier answers</summary>{earlier}</details>" if earlier else ""
    text = html.escape(answers.texts[question.question_id] or "").strip() or "(empty)"
    return f'<div class="words"><h3>Answer {place}</h3>{before}{text}</div>'


def _small(text: str) -> str:
    return f'<div class="quiet">{html.escape(text)}</div>'


@contextmanager
def serving(desk: RatingDesk, host: str, port: int) -> Iterator[gr.Blocks]:
    """Serves the page at `http://HOST:PORT`."""
    images = {question.image for question in desk.questions.values() if question.image}
    css, js = ((PAGE / f"rating.{kind}").read_text() for kind in ("css", "js"))
    with pages.serving(
        lambda: build_page(desk), host, port, files=sorted(images), css=css, js=js,
        description="Rate answers about images: blind, in random order.",
    ) as page:  # fmt: skip
        yield page


def launch(desk: RatingDesk, host: str, port: int) -> None:
    """Serves the page until it is interrupted."""
    with serving(desk, host, port) as page:
        print(f"Serving the rating page at http://{host}:{port} (stop with Ctrl-C)", flush=True)
        page.block_thread()
