"""`transformers-owl check`: what is fetched, found and written, with a small release at a stand-in of the Hub."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, GoldenCase
from hub import Hub
from huggingface_hub import constants, snapshot_download
from test_imports import COMMANDS
from typer.testing import CliRunner

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration, MplugOwlModel, MplugOwlProcessor
from transformers_owl.cli import app
from transformers_owl.conversion.checkpoints import Checkpoint, Piece, open_owl
from transformers_owl.evaluation import check as checking
from transformers_owl.evaluation.check import check, fetch, similarity, streamed_logits


NAME = "mplug-owl-llama-7b"
REPO = f"owner/{NAME}"
IDS = [1, 2, 232, 328, 740, 3, 69, 4, 5, 2]


@pytest.fixture
def hub(monkeypatch, tmp_path, llama):
    hub = Hub()
    hub.repositories[REPO] = {path.name: path.read_bytes() for path in Path(llama.checkpoint).iterdir()}
    hub.repositories[REPO]["instruction_tuned.pth"] = b"of the first code"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # what is kept of a file that breaks off
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache/hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield hub
    hub.close()


@pytest.fixture
def known(monkeypatch, llama_model):
    """What the small release computes, in place of the numbers of the large one."""
    with torch.no_grad():
        logits = llama_model(input_ids=torch.tensor([IDS])).logits[0, :3, :3]
    monkeypatch.setattr(checking, "KNOWN_IDS", IDS)
    monkeypatch.setattr(checking, "KNOWN_LOGITS", {NAME: logits.tolist()})
    return logits


@pytest.fixture
def owleval(folder):
    shutil.copy(folder / "answer/owl.jsonl", folder / checking.PUBLISHED)
    return folder


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(checking.LocalModel.__init__, "__defaults__", (None, "auto", 6, False, None, False))


def test_a_release_is_fetched_tried_and_reported(hub, known, owleval, short, llama, tmp_path):
    words = ["check", REPO, "--output", str(tmp_path / "out"), "--owleval", str(owleval), "--questions", "3"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out/report.json").read_text()
    report = json.loads(text)
    files = {path.name: path.read_bytes() for path in Path(llama.checkpoint).iterdir()}
    download = report["download"]
    assert download["commit"] == hub.revision(REPO)
    assert {name: file["bytes"] for name, file in download["files"].items()} == {
        name: len(content) for name, content in files.items()
    }
    assert download["files"]["pytorch_model.bin"]["sha256"] == hashlib.sha256(files["pytorch_model.bin"]).hexdigest()
    blob = b"blob %d\0" % len(files["config.json"]) + files["config.json"]
    assert download["files"]["config.json"]["sha1"] == hashlib.sha1(blob).hexdigest()
    assert report["logits"]["ok"] and report["logits"]["difference"] < 1e-4
    torch.testing.assert_close(torch.tensor(report["logits"]["found"]), known)
    rows = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == [row["answer"] for row in report["answers"]] == answers(owleval, llama)
    assert [row["model_id"] for row in rows] == 3 * [REPO]
    assert [row["published"] for row in report["answers"]] == [
        f"Owl's answer {number}, with <b>marks</b>." for number in (1, 2, 3)
    ]
    assert report["speed"]["first_token_seconds"] > 0 and report["speed"]["tokens_a_second"] > 0
    assert report["peak_memory_bytes"]["process"] > 1e8
    page = (tmp_path / "out/report.md").read_text()
    for part in ("| logits | agree: ", "| Owl's answer 2, with &lt;b>marks&lt;/b>. |", download["commit"]):
        assert part in page
    assert str(tmp_path) not in text + page


def answers(owleval: Path, llama) -> list[str]:
    """To the first three questions, of which the third is about the second's image, by hand."""
    model = MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)
    processor = MplugOwlProcessor.from_pretrained(llama.checkpoint)
    found: list[str] = []
    lines = [json.loads(line) for line in (owleval / "questions.jsonl").read_text().splitlines()][:3]
    for number, row in enumerate(lines):
        image = {"type": "image", "path": str(owleval / "cases" / row["image"])}
        chat = [{"role": "user", "content": [image, {"type": "text", "text": row["question"]}]}]
        if number == 2:
            first = [image, {"type": "text", "text": lines[1]["question"]}]
            chat[0]["content"] = [{"type": "text", "text": row["question"]}]
            chat[:0] = [{"role": "user", "content": first}, {"role": "assistant", "content": found[1]}]
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        written = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        found.append(processor.decode(written, skip_special_tokens=True))
    return found


def test_other_logits_end_the_command_with_1(hub, known, monkeypatch, tmp_path):
    wrong = (known + torch.tensor([0, 0, 2e-4])).tolist()
    monkeypatch.setattr(checking, "KNOWN_LOGITS", {NAME: wrong})
    result = CliRunner().invoke(app, ["check", REPO, "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "the logits differ" in result.stdout
    assert "| logits | DIFFER: 0.0002 (allowed 0.0001) |" in (tmp_path / "out/report.md").read_text()
    assert "answers" not in json.loads((tmp_path / "out/report.json").read_text())


def test_a_folder_needs_no_hub(known, llama, tmp_path):
    shutil.copytree(llama.checkpoint, tmp_path / NAME)
    assert check(str(tmp_path / NAME), tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert "download" not in report
    assert (report["model"], report["logits"]["ok"]) == (NAME, True)


def test_an_unknown_model_is_reported_without_logits(llama, tmp_path):
    assert check(llama.checkpoint, tmp_path / "out")
    assert json.loads((tmp_path / "out/report.json").read_text())["logits"] is None
    assert "| logits | no reference |" in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "config.json"])
@pytest.mark.parametrize("is_cached", [False, True], ids=["in the folder", "in the Hub's cache"])
def test_a_damaged_file_is_named(hub, name, is_cached, tmp_path):
    if is_cached:
        snapshot_download(REPO, ignore_patterns="*.pth")
    folder, _ = fetch(Checkpoint(REPO), tmp_path / "model")
    assert (folder == str(tmp_path / "model")) != is_cached
    path = Path(folder, name).resolve()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{name} has the sha.*the Hub's is.*Delete {path} and run the same command"):
        fetch(Checkpoint(REPO), tmp_path / "model")
    path.unlink()
    folder, _ = fetch(Checkpoint(REPO), tmp_path / "model")
    assert Path(folder, name).read_bytes() == content


@pytest.mark.parametrize("breaks", [["half"], ["half", *6 * ["drop"]]], ids=["once", "for good"])
def test_a_download_goes_on_where_it_broke_off(hub, breaks, tmp_path):
    content = hub.repositories[REPO]["pytorch_model.bin"]
    hub.faults[f"GET /{REPO}/resolve/{hub.revision(REPO)}/pytorch_model.bin"] = list(breaks)
    if len(breaks) > 1:
        with pytest.raises(OSError, match=r"(?s)was not downloaded.*Run the same command again"):
            fetch(Checkpoint(REPO), tmp_path)
        assert not (tmp_path / "pytorch_model.bin").exists()
    fetch(Checkpoint(REPO), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == {
        name: file for name, file in hub.repositories[REPO].items() if not name.endswith(".pth")
    }
    assert hub.ranges == [f"bytes={len(content) // 2 // 1024 * 1024}-"]


def test_safetensors_are_preferred_to_pickles(hub, tmp_path):
    hub.repositories[REPO]["model.safetensors"] = b"weights"
    fetch(Checkpoint(REPO), tmp_path)
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "pytorch_model.bin").exists()


@pytest.mark.parametrize("name", ["image-llama", "image-bloom", "video-llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_logits_are_those_of_the_whole_model(name, dtype):
    checkpoint = GoldenCase(name).checkpoint
    model, pieces = open_owl(Checkpoint(checkpoint), dtype)
    whole = MplugOwlForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).float().eval()
    with torch.no_grad():
        expected = whole(input_ids=torch.tensor([IDS])).logits
    assert torch.equal(streamed_logits(model.config, pieces, IDS), expected)


@pytest.mark.parametrize("keys", sorted((GOLDEN / "keys").glob("*.json")), ids=lambda path: path.stem)
def test_logits_of_a_release_at_full_size_stream(keys, monkeypatch):
    """Shapes alone: one weight at a time, and those of what sees are never asked for."""
    # What looks at values:
    monkeypatch.setattr(MplugOwlModel, "_note_missing", lambda *arguments: None)
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda *arguments: None)
    small = "image-bloom" if "bloom" in keys.stem else "image-llama"
    written = json.loads(Path(GoldenCase(small).checkpoint, "config.json").read_text())
    shapes = {name: tuple(shape) for name, shape in json.loads(keys.read_text()).items()}
    rows, width = next(
        shape for name, shape in shapes.items() if name.endswith(("embed_tokens.weight", "word_embeddings.weight"))
    )
    kind = {"model_type": written["text_config"]["model_type"], "vocab_size": rows, "hidden_size": width}
    config = MplugOwlConfig(text_config=kind | ({"n_layer": 30, "n_head": 32} if "bloom" in keys.stem else {}))
    asked = []

    def piece(name: str, tensor: torch.Tensor) -> Piece:
        return Piece({name: tensor}, lambda: asked.append(name) or {name: tensor})

    with torch.device("meta"):
        state = MplugOwlForConditionalGeneration(config).bfloat16().state_dict()
    pieces = [piece(name, tensor) for name, tensor in state.items()]
    logits = streamed_logits(config, pieces, checking.KNOWN_IDS, "meta")
    assert (logits.shape, logits.dtype) == ((1, 11, rows), torch.float32)
    assert sorted(asked) == sorted(
        name for name in state if name.startswith(("model.language_model.", "model.embedding_norm", "lm_head"))
    )


@pytest.mark.parametrize(
    ("answer", "published", "expected"),
    [("a b c", "a b c", 1), ("a b", "c d", 0), ("", "a", 0), ("a b c d", "a x c\nd", 0.75)],
)
def test_similarity(answer, published, expected):
    assert similarity(answer, published) == expected


def test_the_command_is_one_of_those_whose_help_is_tried():
    assert "check" in COMMANDS
