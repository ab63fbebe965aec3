"""The library's Seq2SeqTrainer for conversations: it generates answers, and metrics get only these."""

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Seq2SeqTrainingArguments

from .collator import IGNORED, ConversationCollator
from .library import UnpaddedPredictions


class OwlSeq2SeqTrainer(UnpaddedPredictions):
    """
    A `Seq2SeqTrainer` for batches of a [`ConversationCollator`], whose rows hold questions and answers.

    With `predict_with_generate` the model generates the last answer of each row after the same prompt as in training
    and in `Chat`. Predictions and label ids are (rows, tokens): the generated answers, and those of the rows, cut at
    the collator's `max_length`, followed by padding and -100. The loss covers all answers of a row, as in `Trainer`.

    It takes the arguments of `Seq2SeqTrainer`. The length of answers is limited by `max_new_tokens` of the model's
    `generation_config`, or of `evaluate` and `predict`.

    Raises:
        ValueError: with `predict_with_generate`, for another collator, packed rows and `generation_max_length`.
    """

    args: Seq2SeqTrainingArguments
    model: Any
    data_collator: Any

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not self.args.predict_with_generate:
            return
        collator = self.data_collator
        if not isinstance(collator, ConversationCollator):
            raise ValueError(
                f"`data_collator` is a {type(collator).__name__}, but must be a ConversationCollator, which separates "
                "questions from answers."
            )
        if collator.packed_length is not None:
            raise ValueError("Packed rows have no prompts to generate from: leave out the collator's `packed_length`.")
        if self.args.generation_max_length is not None:
            raise ValueError(
                f"`generation_max_length` is {self.args.generation_max_length}, but it would count the questions, too: "
                "leave it out, and set `max_new_tokens` of the model's `generation_config`."
            )

    def evaluation_loop(self, *args, **kwargs):
        """As in the library, but without counting the rows twice that fill the last batches of several processes."""
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **gen_kwargs):
        """As in the library, but generates from the questions, and returns only the answers."""
        if prediction_loss_only or not self.args.predict_with_generate:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)
        loss, _, _ = super().prediction_step(model, inputs, prediction_loss_only=True)
        asked, answers = split_batch(inputs, self.data_collator)
        settings = vars(self.model.generation_config)
        before = dict(settings)
        _, written, _ = super().prediction_step(model, asked, False, ignore_keys, **gen_kwargs)
        assert written is not None
        settings.update(before)  # the library leaves its defaults there, which would be saved: 20 tokens at most
        return loss, written[:, asked["input_ids"].shape[1] :], answers


def split_batch(
    batch: dict[str, torch.Tensor], collator: ConversationCollator
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    Splits a batch into the prompts of the last answers, padded on the left for `generate`, with their images and
    videos, and these answers (rows, tokens), padded with -100.
    """
    prompts, answers = [], []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        end = 1 + int((labels != IGNORED).nonzero()[-1])
        start = 1 + int((labels[:end] == IGNORED).nonzero()[-1])
        prompts.append(ids[:start])
        answers.append(labels[start:end])
    asked = {
        "input_ids": pad_sequence(prompts, True, collator.processor.tokenizer.pad_token_id, "left"),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in prompts], True, 0, "left"),
    }
    for kind, names in (("image", ("pixel_values", "crop_positions")), ("video", ("pixel_values_videos",))):
        counts = [
            [int((ids == collator.token_ids[kind]).sum()) // collator.processor.num_positions() for ids in rows]
            for rows in (batch["input_ids"], prompts)
        ]
        is_asked = [number < before for whole, before in zip(*counts, strict=True) for number in range(whole)]
        if any(is_asked):
            asked |= {name: batch[name][torch.tensor(is_asked)] for name in names if name in batch}
    return asked, pad_sequence(answers, True, IGNORED)
