"""Likelihoods of given answers."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..mplug_owl.modeling_mplug_owl import MplugOwlVisualFeatures


@dataclass(frozen=True)
class AnswerScore:
    """
    The score of one answer.

    Args:
        log_likelihood (`float`): Natural logarithm of the probability of the whole answer with its EOS.
        num_tokens (`int`): Number of tokens of the answer with its EOS; divide by it to compare answers of different
            lengths.
        is_greedy (`bool`): Whether greedy decoding would generate exactly this answer.
    """

    log_likelihood: float
    num_tokens: int
    is_greedy: bool


@torch.no_grad()
def score_answers(
    model, processor, chats: Sequence[list[dict]], answers: Sequence[Sequence[str]], batch_size: int = 8
) -> list[list[AnswerScore]]:
    """
    Scores given answers to questions, as for multiple choice. The images and videos of a chat are encoded once.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model.
        processor ([`MplugOwlProcessor`]): Its processor.
        chats (`Sequence[list[dict]]`): Conversations, each ending with the user's question.
        answers (`Sequence[Sequence[str]]`): The answers to score for each chat, any number and length.
        batch_size (`int`): Answers per batch.

    Returns:
        `list[list[AnswerScore]]`: Scores in the structure of `answers`.

    Raises:
        ValueError: if the numbers of chats and of lists of answers differ.
    """
    if len(chats) != len(answers):
        raise ValueError(
            f"{len(chats)} chats and {len(answers)} lists of answers were given: pass one list for each chat."
        )
    rows = [row for chat, texts in zip(chats, answers, strict=True) for row in _rows(model, processor, chat, texts)]
    scores = [score for at in range(0, len(rows), batch_size) for score in _score(model, rows[at : at + batch_size])]
    ends = iter(scores)
    return [[next(ends) for _ in texts] for texts in answers]


@dataclass(frozen=True)
class _Row:
    prompt: torch.Tensor  # ids (L,)
    answer: torch.Tensor  # ids (L,)
    visual: dict[str, torch.Tensor]  # of "image" and "video", each (images or videos, positions, width)


def _rows(model, processor, chat: list[dict], texts: Sequence[str]) -> list[_Row]:
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    visual = {}
    if "pixel_values" in inputs:
        visual["image"] = model.get_image_features(inputs["pixel_values"], inputs.get("crop_positions")).pooler_output
    if "pixel_values_videos" in inputs:
        visual["video"] = model.get_video_features(inputs["pixel_values_videos"]).pooler_output
    tokenizer = processor.tokenizer
    encoded = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]
    return [_Row(inputs["input_ids"][0], torch.tensor(ids, device=model.device), visual) for ids in encoded]


def _score(model, rows: list[_Row]) -> list[AnswerScore]:
    """Scores of a batch; rows are padded on the left, so that all answers end at the last position."""
    texts = [torch.cat([row.prompt, row.answer]) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_side="left")
    lengths = torch.tensor([len(text) for text in texts], device=ids.device)
    mask = torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - lengths[:, None]
    seen: dict[str, list[torch.Tensor]] = {}
    for row in rows:
        for kind, visual in row.visual.items():
            seen.setdefault(kind, []).append(visual)
    longest = max(len(row.answer) for row in rows)
    # Language models with learned positions count the padding where they are not told.
    language_model = model.get_decoder()
    takes_positions = "position_ids" in inspect.signature(language_model.forward).parameters
    positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if takes_positions else {}
    logits = model(
        input_ids=ids,
        attention_mask=mask.long(),
        mm_encoder_outputs={kind: MplugOwlVisualFeatures(pooler_output=torch.cat(each)) for kind, each in seen.items()},
        logits_to_keep=longest + 1,
        **positions,
    ).logits[:, :-1]
    log_probabilities = logits.float().log_softmax(-1)
    scores = []
    for row, log_probability in zip(rows, log_probabilities, strict=True):
        log_probability = log_probability[longest - len(row.answer) :]
        chosen = log_probability.gather(-1, row.answer[:, None]).sum().item()
        is_greedy = bool((log_probability.argmax(-1) == row.answer).all())
        scores.append(AnswerScore(chosen, len(row.answer), is_greedy))
    return scores
