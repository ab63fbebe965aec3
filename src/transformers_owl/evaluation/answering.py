"""Answers of a model to all questions, in batches, with what it answered before in the context."""

from collections.abc import Iterator
from pathlib import Path

from ..journal import Journal, partial_of, write_rows
from .models import Chat, ChatModel, assistant, user
from .records import Question, answer_row


def answer_questions(
    model: ChatModel, questions: dict[int, Question], output: Path, batch_size: int = 8
) -> Iterator[tuple[Question, str]]:
    """
    Yields questions with their answers and writes them to `output`, in the questions' order. A question about an image
    that was asked about before comes with the earlier questions and the model's own answers. An interrupted run leaves
    `NAME.partial`, and the next one goes on from there.

    Args:
        model ([`ChatModel`]): Who answers.
        questions (`dict[int, Question]`): By id.
        output (`Path`): JSON Lines, in the form of OwlEval's answer files.
        batch_size (`int`): Questions asked together.

    Raises:
        ValueError: if `NAME.partial` holds answers of another model or to other questions, or another run writes it.
    """
    with Journal(partial_of(output)) as journal:
        answers = _resume(journal, questions, model.name)
        yield from ((questions[number], text) for number, text in answers.items())
        for turn in _turns(questions):
            left = [question for question in turn if question.question_id not in answers]
            for start in range(0, len(left), batch_size):
                batch = left[start : start + batch_size]
                texts = model.answer([_chat(question, questions, answers) for question in batch])
                found = list(zip(batch, texts, strict=True))
                journal.append(answer_row(question, model.name, text) for question, text in found)
                answers.update((question.question_id, text) for question, text in found)
                yield from found
        rows = [answer_row(question, model.name, answers[number]) for number, question in questions.items()]
        write_rows(output, rows)
        journal.path.unlink()


def _resume(journal: Journal, questions: dict[int, Question], model_id: str) -> dict[int, str]:
    answers: dict[int, str] = {}
    for where, row in journal.rows():
        question = questions.get(row.get("question_id", -1))
        text = str(row.get("answer", row.get("text")))
        if question is None or row != answer_row(question, model_id, text):
            raise ValueError(
                f"{where} is not an answer of '{model_id}' to these questions: finish that run, or remove the file."
            )
        answers[question.question_id] = text
    return answers


def earlier_turns(question: Question, questions: dict[int, Question]) -> list[Question]:
    """The questions about the same image that come before."""
    if question.image is None:
        return []
    same = [other for other in questions.values() if other.image == question.image]
    return same[: same.index(question)]


def _turns(questions: dict[int, Question]) -> list[list[Question]]:
    """First questions, second questions, and so on: those of one list do not depend on each other."""
    turns: dict[int, list[Question]] = {}
    for question in questions.values():
        turns.setdefault(len(earlier_turns(question, questions)), []).append(question)
    return [turns[depth] for depth in sorted(turns)]


def _chat(question: Question, questions: dict[int, Question], answers: dict[int, str]) -> Chat:
    chat: Chat = []
    picture = question.image
    for earlier in earlier_turns(question, questions):
        chat += [user(earlier.text, picture), assistant(answers[earlier.question_id])]
        picture = None
    return [*chat, user(question.text, picture)]
