"""A conversation that continues from its cache."""

from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from ..mplug_owl.video_processing_mplug_owl import visual_part


class Chat:
    """
    A conversation with a model. Each turn adds its own tokens, pictures and videos to the cache of those before:
    nothing is computed twice, and no picture or video is looked at again.

    The model reads on behind the answer that it wrote, end-of-sequence token included, as in training. A history that
    is rendered and tokenized anew is another text, so its answers can differ.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model.
        processor ([`MplugOwlProcessor`]): Its processor.
        system (`str`, *optional*): A system sentence in place of the original's.
        cache (`Cache`, *optional*): An empty cache to fill, such as a `StaticCache` for compiled decoding; by default
            one that grows.
    """

    def __init__(self, model, processor, system: str | None = None, cache=None):
        self.model = model
        self.processor = processor
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self.ids = torch.empty(1, 0, dtype=torch.long, device=model.device)
        self.pixels: dict[str, list[torch.Tensor]] = {"pixel_values": [], "pixel_values_videos": []}
        self.cache = DynamicCache(config=model.config.text_config) if cache is None else cache

    def ask(self, text: str, images: Sequence = (), **options) -> str:
        """
        The answer to one more question.

        Args:
            text (`str`): What to ask; a typed `<image>` stays text.
            images (`Sequence`): New pictures and videos, which come before the question: PIL images, arrays, lists of
                pictures, paths or URLs.
            options: For `generate`, such as `max_new_tokens`, `do_sample` or `streamer`.

        Raises:
            ValueError: for beams and several answers, which one running cache cannot hold, for a conversation longer
                than the language model's context, and for pictures or videos that cannot be read.
        """
        if options.get("num_beams", 1) != 1 or options.get("num_return_sequences", 1) != 1:
            raise ValueError("A chat keeps one line of conversation: num_beams and num_return_sequences must be 1.")
        sees_videos = self.model.config.vision_config.use_temporal
        content = [*(visual_part(image, sees_videos) for image in images), {"type": "text", "text": text}]
        turn = {"role": "user", "content": content}
        inputs = self._prepare(turn)
        ids = torch.cat([self.ids, inputs["input_ids"]], dim=1)
        if ids.shape[1] >= self.model.model.context_length:
            raise ValueError(
                f"The conversation has {ids.shape[1]} positions, but the language model holds "
                f"{self.model.model.context_length}: start a new one."
            )
        new = {name: [inputs[name]] if name in inputs else [] for name in self.pixels}
        # An empty cache behind earlier turns: one of them failed, so everything is read again.
        is_running = self.cache.get_seq_length() > 0
        pixels = new if is_running else {name: self.pixels[name] + new[name] for name in new}
        try:
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=self.cache,
                return_dict_in_generate=True,
                **{name: torch.cat(values) for name, values in pixels.items() if values},
                **options,
            )
        except BaseException:
            self.cache.reset()
            raise
        self.ids = output.sequences
        self.pixels = {name: self.pixels[name] + new[name] for name in new}
        answer = self.processor.decode(self.ids[0, ids.shape[1] :], skip_special_tokens=True)
        self.messages += [turn, {"role": "assistant", "content": answer}]
        return answer

    def stream(self, text: str, images: Sequence = (), **options) -> Iterator[str]:
        """
        The same, piece by piece as it is written. Closing the iterator stops the answer after its current token.
        """
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = _Stop()
        failures: list[BaseException] = []

        def write() -> None:
            try:
                criteria = StoppingCriteriaList([stop, *options.pop("stopping_criteria", [])])
                self.ask(text, images, streamer=streamer, stopping_criteria=criteria, **options)
            except BaseException as failure:
                failures.append(failure)
                streamer.end()

        thread = Thread(target=write)
        thread.start()
        try:
            yield from streamer
        finally:
            stop.now = True
            thread.join()
        if failures:
            raise failures[0]

    def _prepare(self, turn: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Ids and pixels of one turn. Later turns go on behind the cached text: no system sentence, no BOS."""
        is_first = self.ids.shape[1] == 0
        head = self.messages if is_first else [{"role": "system", "content": ""}]
        inputs = self.processor.apply_chat_template(
            [*head, turn],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"add_special_tokens": is_first},
        )
        return {name: inputs[name].to(self.model.device) for name in ("input_ids", *self.pixels) if name in inputs}


class _Stop(StoppingCriteria):
    now = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        return torch.full((len(input_ids),), self.now, device=input_ids.device)
