"""A first check of released weights: whether they work on this machine, with a report to share."""

import difflib
import hashlib
import json
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from accelerate import cpu_offload, init_empty_weights
from huggingface_hub import HfApi, RepoFile, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import build_hf_headers

from .. import MplugOwlForConditionalGeneration, __version__
from ..conversion.checkpoints import Checkpoint, Piece, open_owl
from ..conversion.library import HTTPError, http_get
from ..loading import read_config
from ..progress import BYTES, Bar, track
from .answering import answer_questions
from .models import LocalModel, user
from .records import read_answers, read_owleval
from .report import markdown


# What the original computes in float32, by the name of a release: logits[0, :3, :3] for these ids of text.
KNOWN_IDS = [1, 2, 232, 328, 740, 1140, 3, 69, 4, 5, 2]
KNOWN_LOGITS = {
    "mplug-owl-llama-7b": [
        [-6.0774, -14.2518, 0.9577],
        [-5.3115, -12.1374, 0.3657],
        [-5.7249, -14.9420, 0.9261],
    ]
}
TOLERANCE = 1e-4
PUBLISHED = "answer/mPLUG_Owl_7b_answer.jsonl"  # in OwlEval's folder
EXAMPLE = Path(__file__).parent.parent / "demo/pictures/castle-and-octopus.png"
UNUSED = (".h5", ".msgpack", ".onnx", ".pth")
TIMED_TOKENS = 32
SAMPLE_SECONDS = 0.05


def check(
    model: str,
    output: Path,
    owleval: Path | None = None,
    questions: int = 10,
    device: str | None = None,
    dtype: str = "auto",
) -> bool:
    """
    Downloads a model, tries it, and writes `report.json` and `report.md`, which contain no paths and no user names.

    Args:
        model (`str`): Folder, REPO or REPO@REVISION.
        output (`Path`): Folder for the reports, the answers in OwlEval's format, and the download.
        owleval (`Path`, *optional*): OwlEval's folder with its published answers. Without it no questions are asked.
        questions (`int`, defaults to 10): Number of questions to ask.
        device (`str`, *optional*): "cuda", "mps" or "cpu"; by default the accelerator if there is one.
        dtype (`str`, defaults to `"auto"`): Dtype of the weights, except for the reference logits, which need float32.

    Returns:
        `bool`: Whether the logits agree with the reference, or there is none.

    Raises:
        ValueError: for a file whose digest differs from the Hub's, and a model of another type.
        OSError: if the Hub cannot be reached, or a file cannot be read or written.
    """
    asked_of_owleval = None if owleval is None else read_owleval(owleval)
    source = Checkpoint.parse(model)
    output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"model": source.name if Path(source.path).exists() else source.path}
    with peak_memory() as peak:
        folder = source.path
        if not Path(source.path).exists():
            folder, report["download"] = fetch(source, output / "model")
        report["logits"] = known_logits(Checkpoint(folder), source.name)
        start = time.perf_counter()
        asked = LocalModel(folder, device, dtype)
        asked.name = report["model"]
        report["load_seconds"] = time.perf_counter() - start
        report["machine"] = machine(asked.model)
        report["speed"] = speed(asked)
        if owleval is not None and asked_of_owleval is not None:
            first = dict(list(asked_of_owleval.items())[:questions])
            published = read_answers(owleval / PUBLISHED, asked_of_owleval).texts
            written = answer_questions(asked, first, output / "answers.jsonl", batch_size=1)
            progress = track(written, "answering", len(first), "questions")
            texts = {question.question_id: text for question, text in progress}
            report["answers"] = [
                {
                    "question_id": number,
                    "question": question.text,
                    "answer": texts[number],
                    "published": published[number],
                    "similarity": similarity(texts[number], published[number] or ""),
                }
                for number, question in first.items()
            ]
    report["peak_memory_bytes"] = {"process": peak[0]}
    if asked.model.device.type == "cuda":
        report["peak_memory_bytes"]["device"] = torch.cuda.max_memory_allocated()
    (output / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (output / "report.md").write_text(markdown(report), encoding="utf-8")
    return report["logits"] is None or report["logits"]["ok"]


def fetch(source: Checkpoint, folder: Path) -> tuple[str, dict]:
    """
    Downloads the files that `from_pretrained` needs, unless the Hub's cache has them, and checks their digests.

    Args:
        source (`Checkpoint`): A repository.
        folder (`Path`): Target folder. An interrupted download resumes at its last byte.

    Returns:
        `tuple[str, dict]`: The folder with the files; commit, seconds and files.
    """
    start = time.perf_counter()
    try:
        api = HfApi()
        commit = str(api.model_info(source.path, revision=source.revision).sha)
        entries = [entry for entry in api.list_repo_tree(source.path, revision=commit) if isinstance(entry, RepoFile)]
        unused: tuple[str, ...] = UNUSED
        if any(entry.path.endswith(".safetensors") for entry in entries):
            unused = (*unused, ".bin")
        wanted = [entry for entry in entries if not entry.path.endswith(unused)]
        cached = [try_to_load_from_cache(source.path, entry.path, revision=commit) for entry in wanted]
        if all(isinstance(path, str) for path in cached):
            folder = Path(str(cached[0])).parent
        folder.mkdir(parents=True, exist_ok=True)
        files = {entry.path: download(entry, source.path, commit, folder) for entry in wanted}
    except HTTPError as error:
        raise OSError(f"{source.path} was not downloaded: {error} Run the same command again to resume.") from error
    return str(folder), {"commit": commit, "seconds": time.perf_counter() - start, "files": files}


def download(entry: RepoFile, repository: str, commit: str, folder: Path) -> dict:
    """Downloads a file unless it exists. It gets its name once its digest has been checked."""
    path = folder / entry.path
    if path.exists():
        return checked_digest(entry, path)
    part = folder / f"{entry.path}.{entry.blob_id}.part"  # of this version of the file
    with part.open("ab") as file:
        http_get(
            hf_hub_url(repository, entry.path, revision=commit),
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=entry.size,
            displayed_filename=entry.path,
        )
    found = checked_digest(entry, part)
    part.rename(path)
    return found


def checked_digest(entry: RepoFile, path: Path) -> dict:
    """Size and digest of a file: SHA-256, or Git's SHA-1 for what the Hub keeps in Git itself."""
    size = path.stat().st_size
    if entry.lfs is None:
        expected, digest = entry.blob_id, hashlib.sha1(b"blob %d\0" % size)
    else:
        expected, digest = entry.lfs.sha256, hashlib.sha256()
    with Bar(*BYTES, unit="GB", size=1e9) as bar, bar.open(path, "rb", description=entry.path) as file:
        while block := file.read(2**22):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ValueError(
            f"{entry.path} has the {digest.name} digest {digest.hexdigest()}, but the Hub's is {expected}: the file is "
            f"damaged. Delete {path.resolve()} and run the same command again."
        )
    return {"bytes": size, digest.name: expected}


def known_logits(checkpoint: Checkpoint, name: str) -> dict | None:
    """The reference logits of a release and those computed here; `None` without a reference, also if quantised."""
    if name not in KNOWN_LOGITS or "quantization_config" in read_config(checkpoint.path).to_dict():
        return None
    model, pieces = open_owl(checkpoint)
    expected = torch.tensor(KNOWN_LOGITS[name])
    found = streamed_logits(model.config, pieces, KNOWN_IDS)[0, :3, :3]
    difference = (found - expected).abs().max().item()
    return {
        "ids": KNOWN_IDS,
        "expected": expected.tolist(),
        "found": found.tolist(),
        "difference": difference,
        "tolerance": TOLERANCE,
        "ok": difference <= TOLERANCE,
    }


class InFloat32(Mapping):
    """Weights by the model's names, each read and converted to float32 on demand."""

    def __init__(self, pieces: list[Piece], tied: Mapping[str, str]):
        self.pieces = {name: piece for piece in pieces for name in piece.tensors}
        self.tied = {name: kept for name, kept in tied.items() if name not in self.pieces}

    def __getitem__(self, name: str) -> torch.Tensor:
        name = self.tied.get(name, name)
        return self.pieces[name].make()[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter([*self.pieces, *self.tied])

    def __len__(self) -> int:
        return len(self.pieces) + len(self.tied)


@torch.no_grad()
def streamed_logits(config, pieces: list[Piece], ids: list[int], device: str = "cpu") -> torch.Tensor:
    """
    Logits (1, len(ids), vocabulary) of a text in float32, in the memory of one layer.

    Args:
        config (`MplugOwlConfig`): Configuration of the model.
        pieces (`list[Piece]`): Weights of the model.
        ids (`list[int]`): Token ids of the text.
        device (`str`, defaults to `"cpu"`): Device to compute on.
    """
    with init_empty_weights():
        model = MplugOwlForConditionalGeneration(config).float().eval()
    cpu_offload(model, torch.device(device), state_dict=InFloat32(pieces, model.all_tied_weights_keys))  # type: ignore[arg-type]
    return model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Peak memory of the process in bytes, with mapped files; the single entry is updated."""
    process, done, peak = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)

    peak[0] = process.memory_info().rss
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def machine(model) -> dict:
    """The hardware and software versions."""
    kind = model.device.type
    return {
        "device": torch.cuda.get_device_name(model.device) if kind == "cuda" else kind,
        "dtype": str(model.dtype).removeprefix("torch."),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "transformers_owl": __version__,
    }


def speed(asked: LocalModel) -> dict[str, float]:
    """Seconds to the first token of an answer about one image, and tokens per second after it, after a warm-up."""
    chat = [user("Describe the image.", EXAMPLE)]
    seconds = {}
    for tokens in (2, 1, TIMED_TOKENS + 1):
        start = time.perf_counter()
        asked.answer([chat], min_new_tokens=tokens, max_new_tokens=tokens)
        seconds[tokens] = time.perf_counter() - start
    rest = seconds[TIMED_TOKENS + 1] - seconds[1]
    return {"first_token_seconds": seconds[1], "tokens_a_second": TIMED_TOKENS / rest}


def similarity(answer: str, published: str) -> float:
    """Share of words that two texts have in common, in order: 1 for equal texts, 0 for none."""
    return difflib.SequenceMatcher(None, answer.split(), published.split(), autojunk=False).ratio()
