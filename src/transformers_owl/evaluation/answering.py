"""Answers of a model to all questions, in batches, with its earlier answers in the context."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..journal import Journal, check_settings, log_resumed, partial_of, read_rows, write_rows
from .models import ChatModel, Messages, assistant, user
from .records import Question, answer_row


def answer_questions(
    model: ChatModel, questions: dict[int, Question], output: Path, batch_size: int = 8
) -> Iterator[tuple[Question, str]]:
    """
    Yields questions with their answers and writes them to `output`, in the questions' order. A follow-up question about
    an image comes after the earlier questions and the model's own answers. An interrupted run leaves `NAME.partial`,
    from which the next one resumes. Answers that are already in `output` are kept.

    Args:
        model ([`ChatModel`]): The model that answers.
        questions (`dict[int, Question]`): Questions by id.
        output (`Path`): JSON Lines file in the format of OwlEval's answers.
        batch_size (`int`): Questions per batch.

    Raises:
        ValueError: if `output` or `NAME.partial` holds answers of another model or to other questions, or another run
            writes it.
    """
    with Journal(partial_of(output)) as journal:
        answers = earlier_answers(output, questions, model.name)
        log_resumed(len(answers), "answers")
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
        journal.path.unlink(missing_ok=True)


def earlier_answers(output: Path, questions: dict[int, Question], model_id: str) -> dict[int, str]:
    """
    Existing answers, of a complete and of an interrupted run.

    Raises:
        ValueError: for answers of another model or to other questions, which a run would overwrite.
    """
    answers: dict[int, str] = {}
    for path in (output, partial_of(output)):
        if not path.exists() or not path.stat().st_size:
            continue
        for where, row in read_rows(path):
            question = questions.get(row.get("question_id", -1))
            text = str(row.get("answer", row.get("text")))
            if question is None or row != answer_row(question, model_id, text):
                raise ValueError(
                    f"{where} is not an answer of '{model_id}' to these questions: choose another --output, or remove "
                    "the file."
                )
            answers[question.question_id] = text
    return answers


def check_earlier(output: Path, questions: dict[int, Question], model_id: str, settings: dict[str, Any]) -> None:
    """
    Checks an output before a model is loaded.

    Raises:
        ValueError: if the output holds other answers, or answers with other settings.
        FileNotFoundError: if its folder does not exist.
    """
    if not output.parent.is_dir():
        raise FileNotFoundError(f"The folder {output.parent} of {output.name} does not exist: create it first.")
    with Journal(partial_of(output)):  # what was cut off is removed first
        answers = earlier_answers(output, questions, model_id)
        check_settings(str(output), settings, not answers, "Choose another --output, or remove the file.")


def earlier_turns(question: Question, questions: dict[int, Question]) -> list[Question]:
    """Earlier questions about the same image."""
    if question.image is None:
        return []
    same = [other for other in questions.values() if other.image == question.image]
    return same[: same.index(question)]


def _turns(questions: dict[int, Question]) -> list[list[Question]]:
    """First questions, second questions and so on: the questions of one list do not depend on each other."""
    turns: dict[int, list[Question]] = {}
    for question in questions.values():
        turns.setdefault(len(earlier_turns(question, questions)), []).append(question)
    return [turns[depth] for depth in sorted(turns)]


def _chat(question: Question, questions: dict[int, Question], answers: dict[int, str]) -> Messages:
    chat: Messages = []
    image = question.image
    for earlier in earlier_turns(question, questions):
        chat += [user(earlier.text, image), assistant(answers[earlier.question_id])]
        image = None
    return [*chat, user(question.text, image)]
