"""A model as judge: the same ratings as people give, in two orders, with its raw replies."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..journal import Journal, log_resumed
from .answering import earlier_turns
from .models import ChatModel, assistant, user
from .ratings import Mark, Sheet, read_ratings
from .records import Answers, Question
from .rubric import ABILITIES, LEVELS


TRIES = 3
ORDERS = {"in order": 1, "reversed": -1}


@dataclass(frozen=True)
class Case:
    """A request to the judge: answers to a question, in the order shown, and the parser of a mark."""

    rater: str
    question: Question
    shown: list[str]
    request: dict
    read: Callable[[Any, Question], Mark]


def judge_owleval(
    judge: ChatModel, questions: dict[int, Question], systems: Mapping[str, Answers], output: Path, batch_size: int = 4
) -> Iterator[Sheet]:
    """
    Rates all systems' answers to each question side by side, in the given order and the reverse, which count as two
    raters. Existing sheets in `output` are kept.

    Raises:
        ValueError: if `output` holds ratings of other answers.
    """
    cases = []
    for question in questions.values():
        names = [name for name, answers in systems.items() if answers.texts[question.question_id] is not None]
        for order, step in ORDERS.items():
            shown = names[::step]
            request = user(_rating_request(question, questions, [systems[name] for name in shown]), question.image)
            cases.append(Case(f"{judge.name}, {order}", question, shown, request, _read_rating))
    return _judge(judge, [case for case in cases if case.shown], questions, systems, output, batch_size)


def judge_pairs(
    judge: ChatModel,
    questions: dict[int, Question],
    answers: Answers,
    reference: Answers,
    output: Path,
    batch_size: int = 4,
) -> Iterator[Sheet]:
    """Scores each answer and the reference's side by side (Table 3), in both orders, as [`judge_owleval`] does."""
    systems = {answers.model_id: answers, reference.model_id: reference}
    if len(systems) < 2:
        raise ValueError(f"The answers and the reference are both of '{answers.model_id}': give two systems.")
    cases = []
    for question in questions.values():
        for order, step in ORDERS.items():
            shown = list(systems)[::step]
            request = user(_pair_request(question, [systems[name] for name in shown]))
            rater = f"{judge.name}, {answers.model_id} against {reference.model_id}, {order}"
            cases.append(Case(rater, question, shown, request, _read_score))
    return _judge(judge, cases, questions, systems, output, batch_size)


def _judge(
    judge: ChatModel,
    cases: list[Case],
    questions: dict[int, Question],
    systems: Mapping[str, Answers],
    output: Path,
    batch_size: int,
) -> Iterator[Sheet]:
    with Journal(output) as journal:
        sheets = read_ratings(journal.rows(), questions, systems)
        left = []
        for case in cases:
            sheet = sheets.get((case.question.question_id, case.rater))
            if sheet is not None and set(case.shown) <= set(sheet.marks):
                yield sheet
            else:
                left.append(case)
        log_resumed(len(cases) - len(left), "ratings")
        for start in range(0, len(left), batch_size):
            made = _ask(judge, left[start : start + batch_size])
            journal.append(sheet.row(systems) for sheet in made)
            yield from made


def _ask(judge: ChatModel, cases: Sequence[Case]) -> list[Sheet]:
    """Asks until the reply can be read, at most `TRIES` times; then the marks stay empty."""
    chats = [[case.request] for case in cases]
    replies: list[list[str]] = [[] for _ in cases]
    marks: dict[int, dict[str, Mark]] = {}
    for _ in range(TRIES):
        unread = [index for index in range(len(cases)) if index not in marks]
        if not unread:
            break
        for index, reply in zip(unread, judge.answer([chats[index] for index in unread]), strict=True):
            replies[index].append(reply)
            try:
                marks[index] = _read_reply(reply, cases[index])
            except ValueError as error:
                chats[index] += [assistant(reply), user(f"{error} Reply with only the JSON object.")]
    return [
        Sheet(
            case.question.question_id,
            case.rater,
            marks.get(index, dict.fromkeys(case.shown, Mark())),
            tuple(replies[index]),
        )
        for index, case in enumerate(cases)
    ]


def _read_reply(reply: str, case: Case) -> dict[str, Mark]:
    """Reads the last JSON object of a reply, and ignores the text around it."""
    found = last_object(reply)
    wanted = [str(number) for number in range(1, len(case.shown) + 1)]
    if set(found) != set(wanted):
        raise ValueError(f"The keys of your object are {', '.join(found) or 'none'}, but must be {', '.join(wanted)}.")
    return {name: case.read(found[number], case.question) for name, number in zip(case.shown, wanted, strict=True)}


def last_object(reply: str) -> dict[str, Any]:
    """
    The last JSON object in a text.

    Raises:
        ValueError: if there is none.
    """
    decoder = json.JSONDecoder()
    found, at = None, reply.find("{")
    while at >= 0:
        try:
            found, end = decoder.raw_decode(reply, at)
        except json.JSONDecodeError:
            end = at + 1
        at = reply.find("{", end)
    if found is None:
        raise ValueError("Your reply contains no JSON object.")
    return found


def _read_rating(said: Any, question: Question) -> Mark:
    level, abilities = (said.get("level"), said.get("abilities")) if isinstance(said, dict) else (None, None)
    if level not in list(LEVELS):
        raise ValueError(f"A level is {level!r}, but must be one of {', '.join(LEVELS)}.")
    if not isinstance(abilities, list) or not all(name in question.abilities for name in abilities):
        raise ValueError(f"The abilities are {abilities!r}, but must be a list out of {', '.join(question.abilities)}.")
    return Mark(level, tuple(name for name in question.abilities if name in abilities))


def _read_score(said: Any, question: Question) -> Mark:
    if isinstance(said, bool) or not isinstance(said, (int, float)) or not 1 <= said <= 10:
        raise ValueError(f"A score is {said!r}, but must be a number from 1 to 10.")
    return Mark(score=float(said))


def _rating_request(question: Question, questions: dict[int, Question], shown: list[Answers]) -> str:
    levels = "\n".join(f"{level}: {meaning}" for level, meaning in LEVELS.items())
    abilities = "\n".join(f"{name}: {ABILITIES[name][0]}. {ABILITIES[name][1]}" for name in question.abilities)
    form = ", ".join(f'"{number}": {{"level": ..., "abilities": [...]}}' for number in range(1, len(shown) + 1))
    return (
        f"{len(shown)} AI systems were asked the same question about this image. Rate each answer by itself; neither "
        f"its place in the list nor its length counts.\n\nLevels:\n{levels}\n\n"
        f"Abilities that the question needs; name those which an answer shows:\n{abilities}\n\n"
        f"Question: {question.text}\n\n{_answers(question, earlier_turns(question, questions), shown)}\n\n"
        f"Reply with one JSON object in this form: {{{form}}}"
    )


def _pair_request(question: Question, shown: list[Answers]) -> str:
    return (
        "Two AI systems were asked the same question. Score each answer from 1 (useless) to 10 (excellent) for how "
        "helpful, relevant, accurate and detailed it is; its place in the list does not count.\n\n"
        f"Question: {question.text}\n\n{_answers(question, [], shown)}\n\n"
        'Reply with one JSON object of the two scores in this form: {"1": ..., "2": ...}'
    )


def _answers(question: Question, earlier: list[Question], shown: list[Answers]) -> str:
    parts = []
    for number, answers in enumerate(shown, 1):
        dialogue = "".join(
            f"(asked before: {turn.text}\nanswered before: {answers.texts[turn.question_id]})\n" for turn in earlier
        )
        parts.append(f"Answer {number}:\n{dialogue}{answers.texts[question.question_id]}")
    return "\n\n".join(parts)
