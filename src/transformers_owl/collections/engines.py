"""Engines that answer about a batch: the model's own `generate`, `score_answers`, or vLLM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..inference import optimize, score_answers
from ..loading import (
    check_dtype,
    check_folder,
    choose_device,
    choose_template,
    load,
    memory_advice,
    weights_version,
)
from .reading import Decoder, Item, Visual, decoded, decoder_of


ENGINES = ("generate", "vllm")
LIKELIHOOD = "log_likelihood_"
MANY = 2000  # images for which a fast path is looked for without being asked
ADVICE = "Answer fewer images at once (--batch-size), or more briefly (--max-new-tokens)."


@dataclass(frozen=True)
class Settings:
    """
    The questions of a run, and the model that answers them.

    Args:
        model (`str`): A folder or a repository on the Hub.
        prompts (`tuple[str, ...]`): Questions about each image or video.
        score (`tuple[str, ...]`): Answers whose likelihoods are computed instead of generating one.
        batch_size (`int`): Images per batch of `generate`; vLLM batches by itself.
        max_new_tokens (`int`, *optional*): Maximum number of tokens of an answer; by default the checkpoint's.
        engine (`str`): "generate" or "vllm".
        device, dtype, chat_template, load_in_4bit: As in [`load`].
        fast (`bool`): Whether to optimize the model for throughput; for 2,000 images and more it is done where it pays.
        images (`int`): Number of images that the model will get, as far as known.
        num_frames (`int`, *optional*): Frames per video; by default the checkpoint's.
    """

    model: str
    prompts: tuple[str, ...] = ("Describe the picture.",)
    score: tuple[str, ...] = ()
    batch_size: int = 8
    max_new_tokens: int | None = None
    engine: str = "generate"
    device: str | None = None
    dtype: str = "auto"
    num_frames: int | None = None
    chat_template: str | None = None
    load_in_4bit: bool = False
    fast: bool = False
    images: int = 0

    @property
    def columns(self) -> list[str]:
        """Columns of the output."""
        return ["image", "model", "prompt", "answer", *(f"{LIKELIHOOD}{text}" for text in self.score)]

    @property
    def answering(self) -> dict[str, Any]:
        """The settings that the answers depend on, besides model and prompts, which every row names."""
        names = ("max_new_tokens", "dtype", "num_frames", "chat_template", "load_in_4bit")
        return {"weights": weights_version(self.model)} | {name: getattr(self, name) for name in names}

    def check(self) -> None:
        """Raises a ValueError for invalid settings, before a model is loaded."""
        check_dtype(self.dtype)
        check_folder(self.model)
        if self.engine not in ENGINES:
            raise ValueError(f"Unknown engine: {self.engine!r}. Choose one of {', '.join(ENGINES)}.")
        if self.engine == "vllm":
            odd = {
                "--device": self.device,
                "--load-in-4bit": self.load_in_4bit,
                "--fast": self.fast,
                "--score": self.score,
            }
            named = [name for name, value in odd.items() if value]
            if named:
                raise ValueError(
                    f"{' and '.join(named)} cannot be used with vLLM: leave it out, or use --engine generate."
                )
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ValueError(
                f"The prompts are {list(self.prompts)!r:.200}, but must be at least one, and all different."
            )
        if len(set(self.score)) != len(self.score) or len(self.score) == 1 or "" in self.score:
            raise ValueError(f"--score takes two answers or more, such as 'Yes|No', but has {'|'.join(self.score)!r}.")

    def load(self) -> "GenerateEngine | VllmEngine":
        """Loads the model."""
        return VllmEngine(self) if self.engine == "vllm" else GenerateEngine(self)


class GenerateEngine:
    """A model that answers by its own `generate`, or computes likelihoods of given answers."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.batch_size: int | None = settings.batch_size
        self.model, self.processor = load(
            settings.model,
            settings.device,
            settings.dtype,
            settings.chat_template,
            settings.load_in_4bit,
        )
        if settings.fast or settings.images >= MANY:
            optimize(self.model, "throughput", None if settings.fast else settings.images)
        if settings.num_frames is not None:
            self.processor.video_processor.num_frames = settings.num_frames
        self.decoder = Decoder(self.processor, self.model.config.sees_videos)

    def prepare(self, item: Item) -> Visual | str:
        """The model's input of an item, or the reason why there is none."""
        return decoded(item, self.decoder)

    def answer(self, visuals: Sequence[Visual], prompt: str) -> list[dict[str, Any]]:
        """
        Asks `prompt` about all images and videos, in one batch.

        Returns:
            `list[dict]`: For each its `answer`, with likelihoods if they were requested.

        Raises:
            MemoryError: if the batch does not fit into memory.
        """
        chats = [chat(visual, prompt) for visual in visuals]
        with memory_advice(ADVICE):
            return self._score(chats) if self.settings.score else self._write(chats)

    def _write(self, chats: list[list[dict]]) -> list[dict[str, Any]]:
        inputs = self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        longest = self.settings.max_new_tokens
        options = {} if longest is None else {"max_new_tokens": longest}
        written = self.model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        return [{"answer": text} for text in self.processor.batch_decode(written, skip_special_tokens=True)]

    def _score(self, chats: list[list[dict]]) -> list[dict[str, Any]]:
        texts = self.settings.score
        rows = []
        for scores in score_answers(self.model, self.processor, chats, [texts] * len(chats), self.settings.batch_size):
            found = {text: score.log_likelihood for text, score in zip(texts, scores, strict=True)}
            likeliest = max(texts, key=found.__getitem__)
            rows.append({"answer": likeliest, **{f"{LIKELIHOOD}{text}": found[text] for text in texts}})
        return rows


class VllmEngine:
    """A model in vLLM, which batches by itself: a whole block of items is one call."""

    batch_size: int | None = None

    def __init__(self, settings: Settings):
        from vllm import LLM

        self.settings = settings
        self.decoder = decoder_of(settings.model, settings.num_frames)
        self.processor = load_processor(settings)
        kinds = {"image": 1, **({"video": 1} if self.decoder.sees_videos else {})}
        self.engine = LLM(settings.model, dtype=settings.dtype, limit_mm_per_prompt=kinds, disable_log_stats=True)

    def prepare(self, item: Item) -> Visual | str:
        """The model's input of an item, or the reason why there is none."""
        return decoded(item, self.decoder)

    def answer(self, visuals: Sequence[Visual], prompt: str) -> list[dict[str, Any]]:
        """As [`GenerateEngine.answer`], for any number of images and videos."""
        from vllm import SamplingParams

        longest = self.settings.max_new_tokens or self.engine.get_default_sampling_params().max_tokens
        choices = SamplingParams(temperature=0, max_tokens=longest)
        asked = [self._request(visual, prompt) for visual in visuals]
        replies = self.engine.generate(asked, choices, use_tqdm=False)
        written = [list(reply.outputs[0].token_ids) for reply in replies]
        return [{"answer": text} for text in self.processor.batch_decode(written, skip_special_tokens=True)]

    def _request(self, visual: Visual, prompt: str) -> dict[str, Any]:
        text = self.processor.apply_chat_template(chat(visual, prompt), add_generation_prompt=True, tokenize=False)
        bos = self.processor.tokenizer.bos_token
        text = text if bos is None or text.startswith(bos) else bos + text
        return {"prompt": text, "multi_modal_data": {visual["type"]: engine_data(visual)}}


def load_processor(settings: Settings):
    """The processor, with the chat template of the settings."""
    from ..mplug_owl.processing_mplug_owl import MplugOwlProcessor

    processor = MplugOwlProcessor.from_pretrained(settings.model)
    if settings.chat_template is not None:
        choose_template(processor, settings.chat_template)
    return processor


def engine_data(visual: Visual) -> Any:
    """An image, or frames with metadata that tell vLLM not to sample them again."""
    if visual["type"] == "image":
        return visual["image"]
    import numpy as np

    frames = np.stack([np.asarray(frame) for frame in visual["video"]])
    count = len(frames)
    metadata = {"fps": 2.0, "duration": count / 2, "total_num_frames": count, "frames_indices": list(range(count))}
    return [(frames, {**metadata, "do_sample_frames": False})]


def chat(visual: Visual, prompt: str) -> list[dict[str, Any]]:
    """A question about one image or video."""
    return [{"role": "user", "content": [visual, {"type": "text", "text": prompt}]}]


def check_device(settings: Settings) -> None:
    """Raises a ValueError for a device that is not available on this machine."""
    if settings.engine == "generate":
        choose_device(settings.device)
