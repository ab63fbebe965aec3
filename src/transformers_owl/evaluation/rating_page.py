"""A page on which people rate answers: blind, in random order, by mouse or keyboard, saved at every click."""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from .. import pages
from .answering import earlier_turns
from .rating_desk import RatingDesk
from .ratings import Mark
from .records import Answers, Question
from .rubric import ABILITIES, LEVELS


STYLE = """
.card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 14px; gap: 10px; }
.card[data-active="true"] { border-color: var(--color-accent); box-shadow: 0 0 0 2px var(--color-accent); }
.words { white-space: pre-wrap; overflow-wrap: anywhere; color: var(--body-text-color); line-height: 1.5; }
.words h2 { font-size: 1.25rem; margin: 0; }
.words h3 { font-size: 0.95rem; margin: 0 0 4px; }
.quiet { color: var(--body-text-color); opacity: 0.75; font-size: 0.9rem; overflow-wrap: anywhere; }
.quiet dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 10px; margin: 4px 0 10px; }
.quiet dt { font-weight: 600; } .quiet dd { margin: 0; }
.quiet kbd { border: 1px solid var(--border-color-primary); border-radius: 4px; padding: 0 5px; }
.earlier { border-left: 3px solid var(--border-color-primary); padding-left: 10px; margin-bottom: 8px; }
@media (min-width: 900px) { .subject { position: sticky; top: 8px; align-self: start; } }
@media (max-width: 700px) { .quiet dl.needed { grid-template-columns: 1fr; } .quiet .keys { display: none; } }
"""
KEYS = """() => {
  let active = 0;
  const cards = () => [...document.querySelectorAll('.card')].filter((card) => card.offsetParent);
  const show = (index) => {
    active = Math.max(0, Math.min(index, cards().length - 1));
    cards().forEach((card, place) => { card.dataset.active = place === active; });
  };
  const choose = (kind, place) => cards()[active].querySelectorAll(`input[type=${kind}]`)[place]?.click();
  const turn = (button) => { document.querySelector(button).click(); show(0); scrollTo(0, 0); };
  document.addEventListener('focusin', (event) => {
    const place = cards().indexOf(event.target.closest('.card'));
    if (place >= 0) show(place);
  });
  document.addEventListener('keydown', (event) => {
    const typing = event.target.matches('textarea, input:not([type=radio], [type=checkbox])');
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !cards().length) return;
    const key = event.key.toLowerCase();
    if (['a', 'b', 'c', 'd'].includes(key)) choose('radio', 'abcd'.indexOf(key));
    else if (['1', '2', '3', '4', '5', '6'].includes(key)) choose('checkbox', key - 1);
    else if (key === 'j' || key === 'k') {
      show(active + (key === 'j' ? 1 : -1));
      cards()[active].scrollIntoView({ block: 'nearest' });
    } else if (key === 'n') turn('#next');
    else if (key === 'p') turn('#previous');
    else return;
    event.preventDefault();
  });
}"""
# Every event is taken, one after the other: by default an event is dropped while the one before it is on its way.
LANE: dict[str, Any] = {
    "trigger_mode": "multiple",
    "concurrency_id": "desk",
    "concurrency_limit": 1,
    "api_visibility": "private",
}
HELP = (
    '<div class="keys"><kbd>A</kbd> to <kbd>D</kbd> rate the framed answer, <kbd>1</kbd> to <kbd>6</kbd> mark its '
    "abilities, <kbd>J</kbd> and <kbd>K</kbd> go to the next and the previous answer, <kbd>N</kbd> and <kbd>P</kbd> to "
    "the next and the previous question.</div>"
)


def build_page(desk: RatingDesk) -> gr.Blocks:
    """The page, to be served with `css=STYLE` and `js=KEYS`."""
    # The question's id travels with every event: a click that is still on its way belongs to what its rater saw.
    with gr.Blocks(title="OwlEval: rate answers", analytics_enabled=False, fill_width=True) as page:
        number = gr.Number(visible=False, precision=0)
        with gr.Column() as entrance:
            gr.HTML('<div class="words"><h2>Rate answers about images</h2></div>')
            rater = gr.Textbox(label="Your name", info="Ratings are kept under it; give it again to go on.")
            start = gr.Button("Start", variant="primary")
        with gr.Column(visible=False) as sheet:
            progress = gr.HTML()
            with gr.Row():
                with gr.Column(scale=2, min_width=320, elem_classes="subject"):
                    picture = gr.Image(
                        show_label=False, interactive=False, buttons=["fullscreen"], height=400, alt_text="The picture"
                    )
                    asked = gr.HTML()
                with gr.Column(scale=3, min_width=320):
                    cards = [_card() for _ in desk.systems]
            with gr.Row():
                previous = gr.Button("Previous question", elem_id="previous")
                following = gr.Button("Next question", elem_id="next", variant="primary")
        view: list[Any] = [number, progress, picture, asked, *(part for card in cards for part in card)]

        def show(name: str, shown: int) -> list[Any]:
            return _view(desk, name, shown, len(cards))

        def enter(name: str) -> list[Any]:
            name = " ".join(name.split())
            if not name:
                raise gr.Error("Please give a name: ratings are kept under it.")
            opened = [gr.update(visible=False), gr.update(visible=True), name]
            return opened + show(name, desk.open_question(name))

        gr.on([start.click, rater.submit], enter, [rater], [entrance, sheet, rater, *view], **LANE)
        for button, step in ((previous, -1), (following, 1)):
            button.click(
                lambda name, shown, step=step: show(name, desk.neighbour(shown, step)),
                [rater, number],
                view,
                **LANE,
            )
        for place, (_, _, level, abilities) in enumerate(cards):

            def save(name, shown, level, abilities, place=place):
                desk.save(name, shown, desk.order(name, shown)[place], Mark(level, tuple(abilities)))
                return _small(desk.progress(name, shown))

            said = [rater, number, level, abilities]
            gr.on([level.input, abilities.input], save, said, [progress], show_progress="hidden", **LANE)
    return page


def _card() -> tuple[gr.Column, gr.HTML, gr.Radio, gr.CheckboxGroup]:
    with gr.Column(elem_classes="card") as card:
        words = gr.HTML()
        level = gr.Radio(list(LEVELS), label="Level", container=False)
        abilities = gr.CheckboxGroup([], label="Abilities that the answer shows", container=False)
    return card, words, level, abilities


def _view(desk: RatingDesk, rater: str, number: int, places: int) -> list[Any]:
    """What the page shows of one question, in the order of its components."""
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
    intro = f'<div class="quiet">Asked before about this picture:</div>{before}' if before else ""
    levels = "".join(f"<dt>{level}</dt><dd>{meaning}</dd>" for level, meaning in LEVELS.items())
    needed = "".join(f"<dt>{ABILITIES[name][0]}</dt><dd>{ABILITIES[name][1]}</dd>" for name in question.abilities)
    return (
        f'{intro}<div class="words"><h2>{html.escape(question.text)}</h2></div>'
        f'<div class="quiet"><dl>{levels}</dl>Abilities that this question needs:'
        f'<dl class="needed">{needed}</dl>{HELP}</div>'
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
    pictures = {question.image for question in desk.questions.values() if question.image}
    with pages.serving(lambda: build_page(desk), host, port, files=sorted(pictures), css=STYLE, js=KEYS) as page:
        yield page


def launch(desk: RatingDesk, host: str, port: int) -> None:
    """Serves the page until it is interrupted."""
    with serving(desk, host, port) as page:
        page.block_thread()
