"""A folder is pushed in one commit or not at all; what the Hub refuses is said; the repository loads by its id."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hub import Hub
from huggingface_hub import constants

from transformers_owl.conversion.convert import convert
from transformers_owl.conversion.push import push
from transformers_owl_cli import conversion


REPO = "owner/mplug-owl-llama-7b"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from conftest import GoldenCase

    folder = tmp_path_factory.mktemp("converted") / "mplug-owl-llama-7b"
    convert(GoldenCase("image-llama").checkpoint, folder, max_shard_size="300KB")
    return folder


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield hub
    hub.close()


LOAD = """
    import json, sys
    from transformers import AutoModelForImageTextToText, AutoProcessor
    repo, revision, image, text = sys.argv[1:]
    model = AutoModelForImageTextToText.from_pretrained(repo, revision=revision, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(repo, revision=revision, trust_remote_code=True)
    assert "transformers_owl" not in sys.modules
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    print(json.dumps(model.generate(**inputs, max_new_tokens=24)[:, inputs["input_ids"].shape[1]:].tolist()))
"""


@pytest.mark.slow
def test_what_is_pushed_loads_by_id_at_a_pinned_revision(hub, folder, llama, tmp_path):
    pinned = push(folder, REPO).oid
    files = hub.repositories[REPO]
    assert sorted(files) == sorted(path.name for path in folder.iterdir())
    assert files["model-00001-of-00003.safetensors"] == (folder / "model-00001-of-00003.safetensors").read_bytes()
    assert f'from_pretrained("{REPO}"'.encode() in files["README.md"]
    assert len([request for request in hub.requests if "/commit/" in request]) == 1
    hub.repositories[REPO] = {**files, "config.json": b"broken by a later commit"}
    arguments = [REPO, pinned, str(llama.folder / "image_0.png"), llama.prompts["one_image"]["text"]]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOAD), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **hub.environment(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == llama.expected["one_image/greedy_new_tokens"].tolist()


def test_a_pull_request_leaves_the_repository_alone(hub, folder):
    hub.repositories[REPO] = {"README.md": b"theirs"}
    assert push(folder, REPO, create_pr=True).pr_url
    assert hub.repositories[REPO] == {"README.md": b"theirs"}
    assert {"model.safetensors.index.json", "config.json", "README.md"} <= hub.pull_requests[0].keys()


def test_an_update_replaces_the_weights_and_keeps_other_files(hub, folder):
    hub.repositories[REPO] = {"model-00001-of-00009.safetensors": b"old", "LICENSE": b"theirs", ".gitattributes": b""}
    with pytest.raises(ValueError, match="exists and holds 3 files"):
        push(folder, REPO)
    assert len(hub.repositories[REPO]) == 3
    push(folder, REPO, update=True)
    names = hub.repositories[REPO].keys()
    assert "model-00001-of-00009.safetensors" not in names
    assert {"LICENSE", "config.json", "model-00001-of-00003.safetensors"} <= names


def test_a_new_repository_can_be_private(hub, folder):
    push(folder, REPO, private=True)
    assert hub.private == {REPO}


def test_passing_trouble_is_overcome(hub, folder):
    hub.faults = {"PUT /lfs": [500, "drop", 503]}
    push(folder, REPO)
    assert "config.json" in hub.repositories[REPO]


FAULTS = {
    "errors while weights are sent": ({"PUT /lfs": [500] * 99}, "The Hub answered 500. Run the same command again"),
    "broken connections": ({"PUT /lfs": ["drop"] * 99}, "closed the connection .*Run the same command again"),
    "an error at the commit": ({f"POST /api/models/{REPO}/commit": [500] * 99}, "The Hub answered 500"),
    "a broken connection at the commit": ({f"POST /api/models/{REPO}/commit": ["drop"] * 99}, "closed the connection"),
    "no right to write": ({"POST /api/repos/create": [403] * 99}, "The token has no write access.*injected"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_lasting_trouble_publishes_nothing(fault, hub, folder):
    hub.faults, message = FAULTS[fault]
    with pytest.raises(OSError, match=f"(?s){REPO}: nothing was published. .*{message}"):
        push(folder, REPO)
    assert not hub.repositories.get(REPO)
    sent = {request for request in hub.requests if request.startswith("PUT")}
    hub.faults, hub.requests = {}, []
    push(folder, REPO)
    assert "config.json" in hub.repositories[REPO]
    if "commit" in fault:
        assert len(sent) == 3 and not [request for request in hub.requests if request.startswith("PUT")]


def test_a_gated_repository_is_refused(hub, folder):
    hub.repositories[REPO] = {"config.json": b"theirs"}
    hub.gated.add(REPO)
    with pytest.raises(OSError, match=r"nothing was published. The token has no write access"):
        push(folder, REPO, update=True)
    assert hub.repositories[REPO] == {"config.json": b"theirs"}


@pytest.mark.parametrize(("token", "message"), [(None, "No token"), ("hf_wrong", "does not accept the token")])
def test_a_token_is_needed(hub, folder, token, message, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises((OSError, ValueError), match=message):
        push(folder, REPO)
    assert not hub.repositories


def test_an_incomplete_folder_is_refused_before_anything_is_sent(hub, llama):
    with pytest.raises(ValueError, match=r"is not a complete model folder: it lacks README.md, modeling_mplug_owl.py"):
        push(Path(llama.checkpoint), REPO)
    assert not hub.requests


def test_conversion_pushes_as_asked(hub, llama, tmp_path):
    conversion.convert(llama.checkpoint, tmp_path / "owl", push_to_hub="owner/owl", private=True)
    assert "config.json" in hub.repositories["owner/owl"] and hub.private == {"owner/owl"}


def test_a_stand_in_that_is_gone_is_an_error(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="cannot be reached"):
        push(folder, REPO)


def test_nothing_but_the_model_is_published(hub, folder, tmp_path, capsys):
    whole = tmp_path / folder.name
    shutil.copytree(folder, whole)
    (tmp_path / "secret").write_text("key")
    others = [".env", "optimizer.pt", "training_args.bin", "run.json", "log.txt", "key.py", "model.safetensors.tmp"]
    others += ["adapter.safetensors", "tmp0a1b.safetensors", "model-00001-of-00009.safetensors", "model.safetensors"]
    for name in others:
        (whole / name).write_bytes(b"not for others")
    for name in ("LICENSE", "vocab.json"):
        (whole / name).symlink_to(tmp_path / "secret")
    push(whole, REPO)
    assert sorted(hub.repositories[REPO]) == sorted(path.name for path in folder.iterdir())
    said = capsys.readouterr().out
    assert all(name in said for name in [*others, "LICENSE", "vocab.json"])
    (whole / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names model-00001-of-00003.safetensors, which the folder does not have"):
        push(whole, "owner/other")
