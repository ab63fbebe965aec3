"""mPLUG-Owl as a model of lmms-eval, which finds it by this package's entry point: `--model transformers_owl`.

Only lmms-eval imports this file, and nearly every line depends on its internals: it is the fence of this room.
"""

from collections.abc import Sequence
from itertools import groupby

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from ..inference import score_answers
from ..mplug_owl.video_processing_mplug_owl import visual_part
from ..progress import track
from .models import LocalModel, Messages


LEANS_ON = {
    "lmms_eval.models.registry_v2.ModelManifest": "what an entry point gives",
    "lmms_eval.api.model.lmms": "what a model is: its requests, and `task_dict` with the documents",
    "lmms_eval.api.instance.GenerationResult": "an answer that is left as it is",
}


def manifest() -> ModelManifest:
    """What the entry point gives lmms-eval."""
    return ModelManifest(model_id="transformers_owl", simple_class_path=f"{__name__}.{HarnessModel.__name__}")


class HarnessModel(lmms):
    """
    Args:
        pretrained (`str`): A folder or a repository on the Hub.
        batch_size (`int`): Questions, or given answers, per batch.
        device (`str`, *optional*): "cuda", "mps" or "cpu"; by default the accelerator if there is one.
        dtype (`str`, defaults to `"auto"`): Dtype of the weights, such as "bfloat16".
        chat_template (`str`, *optional*): "original", "language_model" or a Jinja file; by default the checkpoint's.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        chat_template: str | None = None,
    ):
        super().__init__()
        self.model = LocalModel(pretrained, device, dtype, chat_template=chat_template)
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence) -> list[str]:
        """Answers, each cut at the first of the task's stop strings."""
        answers = []
        same = groupby([request.args for request in requests], key=lambda arguments: arguments[1])
        for settings, group in same:
            chats = [self._chat(text, visuals, *place) for text, _, visuals, *place in group]
            until = settings.get("until", [])
            stops = [until] if isinstance(until, str) else until
            for start in track(
                range(0, len(chats), self.batch_size), "answering", -(-len(chats) // self.batch_size), "batches"
            ):
                texts = self.model.answer(chats[start : start + self.batch_size], **_options(settings))
                answers += [_cut(text, stops) for text in texts]
        return answers

    def loglikelihood(self, requests: Sequence) -> list[GenerationResult]:
        """
        For each given answer its loss (the mean over its tokens with EOS) and whether greedy decoding generates it:
        lmms-eval takes the answer with the smallest loss. The pair is in a `GenerationResult`, since lmms-eval would
        convert a bare one to text.
        """
        chats, texts = [], []
        for text, target, visuals, number, task, split in (request.args for request in requests):
            chats.append(self._chat(text, visuals, number, task, split))
            given = target if isinstance(target, str) else target(self.task_dict[task][split][number])
            texts.append([given.strip()])
        scores = score_answers(self.model.model, self.model.processor, chats, texts, self.batch_size)
        losses = [(-score.log_likelihood / score.num_tokens, score.is_greedy) for (score,) in scores]
        return [GenerationResult(loss) for loss in losses]

    def generate_until_multi_round(self, requests: Sequence) -> list[str]:
        raise ValueError("Multi-round tasks are not supported: choose a task with one round.")

    def _chat(self, text: str, visuals, number: int, task: str, split: str) -> Messages:
        shown = visuals(self.task_dict[task][split][number]) or []
        seen = [visual_part(visual) for visual in shown]
        return [{"role": "user", "content": [*seen, {"type": "text", "text": text}]}]


def _options(settings: dict) -> dict:
    """The task's settings as options of `generate`; a temperature of 0 is greedy decoding."""
    kept = {name: settings[name] for name in ("max_new_tokens", "num_beams") if settings.get(name)}
    if settings.get("temperature"):
        kept |= {"do_sample": True, "temperature": settings["temperature"], "top_p": settings.get("top_p") or 1.0}
    return kept


def _cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text
