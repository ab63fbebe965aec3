# SPDX-License-Identifier: Apache-2.0
"""The task "image-to-text": a question about each image or video, by default a description."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset
from transformers.pipelines.base import Pipeline
from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline
from transformers.utils.chat_template_utils import Chat

from .video_processing_mplug_owl import visual_part


PROMPTS = {"image": "Describe the picture.", "video": "Describe the video."}
ONE_IMAGE = (str, bytes, os.PathLike, PIL.Image.Image, np.ndarray, torch.Tensor)


class MplugOwlImageToTextPipeline(ImageTextToTextPipeline):
    """
    Answers about images and videos.

    Example:

    ```python
    describe = pipeline("image-to-text", model=folder, trust_remote_code=True)
    describe("owl.png")  # [{"generated_text": "An owl in a tree."}]
    describe(["owl.png", "cat.png"], prompt="What is it?", batch_size=2, num_beams=4)
    describe("clip.mp4", prompt="What happens?", num_frames=8)
    ```
    """

    processor: Any

    def __call__(self, images=None, prompt=None, text=None, **kwargs):
        """
        Args:
            images: An image (PIL image, array, path, URL, base64 or bytes), a video (a path or URL by its suffix,
                bytes, or an array of four dimensions), a row `{"image": image, "text": prompt}` or `{"video": ...}`
                with optional text, a chat with its own question, or a list, dataset or other iterable of these.
            prompt (`str` or `list[str]`, *optional*): The question about every image, or a list with one for each
                image. A prompt with the placeholder `<image>` or `<|video|>` is the model's whole input, unchanged.
            text (*optional*): The library's name for `prompt`; it also takes chats.
            batch_size (`int`, defaults to 1): Number of images per batch.
            num_frames (`int`, *optional*): Number of frames sampled from a video.
            kwargs: Options of `generate`, such as `max_new_tokens`, `num_beams` or `streamer`.

        Returns:
            `list[dict]`: `{"generated_text": answer}` for each of the `num_return_sequences` answers. For a list of
            images a list of these, for datasets and other iterables an iterator that answers as it goes.

        Raises:
            ValueError: without an image, if the numbers of prompts and images differ, and for images that cannot be
                read.
        """
        prompt = text if prompt is None else prompt
        if images is None and not isinstance(prompt, str):
            images, prompt = prompt, None
        if images is None:
            raise ValueError("No image was given: pass an image, a list of images or a chat.")
        if isinstance(prompt, (list, tuple)):
            images, prompt = pair(images, prompt, self.model.config.sees_videos), None
        elif isinstance(images, tuple):
            images = list(images)
        elif isinstance(images, Iterable) and not isinstance(images, (*ONE_IMAGE, dict, list, Dataset)):
            images = (row for row in images)
        if isinstance(images, list) and not images:
            return []
        return Pipeline.__call__(self, images, prompt=prompt, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """Writes model and processor with their code and that of this pipeline."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(
        self, prompt=None, num_frames=None, generate_kwargs=None, local_files_only=None, **options
    ):
        """Splits prompt and frames from the options of `generate`, which refuses unknown ones."""
        given = {"prompt": prompt, "num_frames": num_frames}
        given = {name: value for name, value in given.items() if value is not None}
        return given, dict(**(generate_kwargs or {}), **options), {}

    def preprocess(self, inputs, prompt=None, num_frames=None):
        sampling = {} if num_frames is None else {"num_frames": num_frames}
        if not isinstance(inputs, Chat):
            row = inputs if isinstance(inputs, dict) else as_row(inputs, self.model.config.sees_videos)
            kind = next((kind for kind in PROMPTS if kind in row), None)
            if kind is None:
                raise ValueError(f"A row has the keys {list(row)}, but must have 'image' or 'video'.")
            prompt = row.get("text", prompt or PROMPTS[kind])
            token = {"image": self.processor.image_token, "video": self.processor.video_token}[kind]
            if token in prompt:
                visuals = {f"{kind}s": [row[kind]]}
                whole = self.processor(**visuals, text=[prompt], return_tensors="pt", **sampling).to(dtype=self.dtype)
                whole["text"] = prompt
                return whole
            content = [{"type": kind, kind: row[kind]}, {"type": "text", "text": prompt}]
            messages: Any = [{"role": "user", "content": content}]
            inputs = Chat(messages)
        return super().preprocess(inputs, **({"processor_kwargs": sampling} if sampling else {}))

    def _forward(self, model_inputs, **options):
        """New tokens (rows, answers of a row, tokens)."""
        outputs = super()._forward({**model_inputs}, options)
        rows, length = outputs["input_ids"].shape
        sequences = outputs["generated_sequence"]
        return {"tokens": sequences.reshape(rows, -1, sequences.shape[-1])[..., length:]}

    def postprocess(self, model_outputs):
        answers = self.processor.batch_decode(model_outputs["tokens"][0], skip_special_tokens=True)
        return [{"generated_text": answer} for answer in answers]


def pair(images, prompts, sees_videos: bool) -> list[dict]:
    """Rows of images or videos and their prompts."""
    if not isinstance(images, (list, tuple)) or len(images) != len(prompts):
        given = f"{len(images)} images" if isinstance(images, (list, tuple)) else f"a {type(images).__name__}"
        raise ValueError(f"{len(prompts)} prompts were given for {given}: pass one prompt, or one for each image.")
    return [as_row(image, sees_videos) | {"text": prompt} for image, prompt in zip(images, prompts, strict=True)]


def as_row(source, sees_videos: bool) -> dict[str, Any]:
    """A row that shows an image or a video, whichever it is."""
    part = visual_part(source, sees_videos)
    return {part["type"]: source}


__all__ = ["MplugOwlImageToTextPipeline"]
