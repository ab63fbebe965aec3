"""A conversation that continues from its key-value cache."""

from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from ..mplug_owl.library_mplug_owl import CACHE_NAME
from ..mplug_owl.video_processing_mplug_owl import visual_part


# Inputs with a row for each view of an image, or for each video.
KINDS = {"pixel_values": "image", "crop_positions": "image", "pixel_values_videos": "video"}


class Chat:
    """
    A conversation with a model. Each turn adds its tokens, images and videos to the cache of earlier turns, so that
    nothing is computed twice and every image or video is encoded once.

    The model continues after its own answer with its end-of-sequence token, as in training. A history that is rendered
    and tokenized again is a different text, so its answers can differ.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model.
        processor ([`MplugOwlProcessor`]): Its processor.
        system (`str`, *optional*): A system prompt instead of the original's.
        history (`Sequence[dict]`): Messages of earlier turns to continue; they are computed with the first turn.
        cache (`Cache`, *optional*): An empty cache to fill, such as a `StaticCache` for compiled decoding; by default
            the cache of `generate`, replaced when it is full.
    """

    def __init__(self, model, processor, system: str | None = None, history: Sequence[dict] = (), cache=None):
        self.model = model
        self.processor = processor
        head = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, Any]] = [*head, *history]
        self.ids = torch.empty(1, 0, dtype=torch.long, device=model.device)
        self.pixels: dict[str, list[torch.Tensor]] = {name: [] for name in KINDS}
        self.cache = cache
        self.has_own_cache = cache is None
        self.ends = torch.tensor(model.generation_config.eos_token_id, device=model.device)
        self._stop = _Stop()

    def ask(self, text: str, images: Sequence = (), **options) -> str:
        """
        Asks the next question.

        Args:
            text (`str`): The question; a typed `<image>` stays text.
            images (`Sequence`): New images and videos, placed before the question: PIL images, arrays, lists of images,
                paths or URLs.
            options: Options of `generate`, such as `max_new_tokens`, `do_sample` or `streamer`. Beam search
                (`num_beams`) computes the whole conversation again, since the cache holds one sequence.

        Returns:
            `str`: The answer.

        Raises:
            ValueError: for several answers, for a conversation longer than the language model's context or the given
                cache, and for images or videos that cannot be read.
        """
        if options.get("num_return_sequences", 1) != 1:
            raise ValueError("A chat continues one conversation: num_return_sequences must be 1.")
        sees_videos = self.model.config.sees_videos
        content = [*(visual_part(image, sees_videos) for image in images), {"type": "text", "text": text}]
        turn = {"role": "user", "content": content}
        inputs = self._prepare(turn)
        ids = torch.cat([self.ids, inputs["input_ids"]], dim=1)
        if ids.shape[1] >= self.model.context_length:
            raise ValueError(
                f"The conversation has {ids.shape[1]} positions, but the language model's context length is "
                f"{self.model.context_length}: start a new one."
            )
        pixels = {name: [*self.pixels[name], *inputs.get(name, ())] for name in self.pixels}
        with_beams = options.get("num_beams", 1) > 1
        cache = None if with_beams else self._cache_for(ids.shape[1], options)
        # What the cache holds is not read again: all but the new turn, unless a turn failed or was written by beams.
        cached = ids[0, : 0 if cache is None else cache.get_seq_length()]
        unseen = {name: pixels[name][self._shown(name, cached) :] for name in pixels}
        try:
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                return_dict_in_generate=True,
                **({} if cache is None else {CACHE_NAME: cache}),
                **{name: torch.stack(values) for name, values in unseen.items() if values},
                **options,
            )
        except BaseException:
            if self.cache is not None:
                self.cache.reset()
            raise
        if not with_beams:
            self.cache = output.get(CACHE_NAME)  # none with use_cache=False
        self.ids = output.sequences
        self.pixels = pixels
        answer = self.processor.decode(self.ids[0, ids.shape[1] :], skip_special_tokens=True)
        self.messages += [turn, {"role": "assistant", "content": answer}]
        return answer

    def stream(self, text: str, images: Sequence = (), **options) -> Iterator[str]:
        """
        As [`Chat.ask`], but yields the answer piece by piece (with beams in one piece). Closing the iterator stops the
        answer after its current token, and so does `stop`.
        """
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = self._stop = _Stop()
        failures: list[BaseException] = []

        def write() -> None:
            try:
                criteria = StoppingCriteriaList([stop, *options.pop("stopping_criteria", [])])
                if options.get("num_beams", 1) > 1:
                    answer = self.ask(text, images, stopping_criteria=criteria, **options)
                    streamer.on_finalized_text(answer, stream_end=True)
                else:
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

    def stop(self) -> None:
        """Stops the streamed answer after its current token; may be called from a thread or a signal handler."""
        self._stop.now = True

    def _cache_for(self, length: int, options: dict[str, Any]):
        """The cache if it has room for a prompt and its answer; none if `generate` must make a new one."""
        if self.cache is None or not self.cache.is_compileable:
            return self.cache
        config = options.get("generation_config") or self.model.generation_config
        needed = length + (options.get("max_new_tokens") or config.max_new_tokens or 0)
        room = self.cache.get_max_length()
        if needed <= room:
            return self.cache
        if self.has_own_cache:
            return None
        raise ValueError(
            f"The conversation and its answer may need {needed} positions, but the cache has {room}: lower "
            "max_new_tokens, give a longer cache, or start a new conversation."
        )

    def _shown(self, name: str, ids: torch.Tensor) -> int:
        """Number of image views, or of videos, in these ids."""
        token_id = {"image": self.processor.image_token_id, "video": self.processor.video_token_id}[KINDS[name]]
        return int((ids == token_id).sum()) // self.processor.num_positions()

    def _prepare(self, turn: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Ids and pixels of one turn, which follow the cached text."""
        if self.ids.shape[1] == 0:
            inputs = self.processor.apply_chat_template(
                [*self.messages, turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        else:
            has_ended = bool(torch.isin(self.ids[0, -1], self.ends))
            inputs = self.processor.continue_chat(self.messages, turn, has_ended)
        return {name: inputs[name].to(self.model.device) for name in ("input_ids", *self.pixels) if name in inputs}


class _Stop(StoppingCriteria):
    now = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        return torch.full((len(input_ids),), self.now, device=input_ids.device)
