"""Files of weights made to run code, fill the memory or lead elsewhere: whatever opens one refuses it in a sentence."""

import codecs
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from releases import release
from transformers import AutoModel, CLIPVisionConfig

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlModel
from transformers_owl.conversion.build import open_gguf, open_language, open_vision
from transformers_owl.conversion.checkpoints import Checkpoint
from transformers_owl.conversion.convert import convert
from transformers_owl.conversion.export import export
from transformers_owl.conversion.merge import merge
from transformers_owl.conversion.quantize import quantize
from transformers_owl.conversion.verify import parts
from transformers_owl.loading import load


LARGE = 10**12
INFLATED = 300 * 2**20  # bytes
ALLOWED = 100 * 1024  # KiB that a refusal may take
STORAGE = object()


class Reduced:
    """What is pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def tensor(size: int = 4, stride: int = 1) -> Reduced:
    return Reduced(torch._utils._rebuild_tensor_v2, STORAGE, 0, (size,), (stride,), False, OrderedDict())


def pickled(content, items: int = 4, *more) -> bytes:
    """As torch writes weights, with one storage of so many numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", items, *more) if value is STORAGE else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def write_archive(path: Path, content, items: int = 4, inflated: str = "", claimed: str = "") -> None:
    """As torch writes them, but for a part that is compressed, or says that it is larger than it is."""
    with zipfile.ZipFile(path, "w") as archive:
        files = {"data.pkl": pickled(content, items), "byteorder": b"little", "version": b"3\n", "data/0": bytes(16)}
        for name, data in files.items():
            entry = zipfile.ZipInfo(f"archive/{name}")
            entry.compress_type = zipfile.ZIP_DEFLATED if name == inflated else zipfile.ZIP_STORED
            with archive.open(entry, "w") as part:
                part.write(data)
                for _ in range(INFLATED // 2**20 if name == inflated else 0):
                    part.write(bytes(2**20))
        if claimed:
            entry = archive.getinfo(f"archive/{claimed}")
            entry.file_size = entry.compress_size = LARGE


def write_old(path: Path, content, items: int = 4) -> None:
    """As torch wrote them before 1.6."""
    first = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True}]
    data = struct.pack("<q", 4) + bytes(16)
    parts = [*map(pickled, first), pickled(content, items, None), pickled(["0"]), data]
    path.write_bytes(b"".join(parts))


def write_names(path: Path) -> None:
    weight = torch.zeros(2**18)
    torch.save({f"weight.{number}": weight for number in range(500)}, path)


def write_header(path: Path, header, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(16))


def described(shape: list[int], end: int) -> dict:
    return {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


def doubled(times: int):
    text = Reduced(codecs.encode, "a" * 16, "latin1")
    for _ in range(times):
        text = Reduced(codecs.encode, text, "hex")
    return text


CODE, GROWS, DAMAGED = "holds code, which was not run", "would take far more memory", "is truncated or damaged"
RUN = Reduced(os.mkdir, "ran")
OBJECTS = {"code": RUN, "an array of bytes": Reduced(bytearray, 2**31), "a doubled text": doubled(27)}
PICKLES = {name: (lambda path, what=what: write_archive(path, {"w": what}), CODE) for name, what in OBJECTS.items()}
OLD = {f"{name}, old": (lambda path, what=what: write_old(path, {"w": what}), CODE) for name, what in OBJECTS.items()}
BINS = {
    **PICKLES,
    **OLD,
    "a compressed pickle": (lambda path: write_archive(path, {"w": tensor()}, inflated="data.pkl"), GROWS),
    "a compressed weight": (lambda path: write_archive(path, {"w": tensor()}, inflated="data/0"), GROWS),
    "a part larger than the file": (lambda path: write_archive(path, {"w": tensor()}, claimed="data/0"), GROWS),
    "a pickle larger than the file": (lambda path: write_archive(path, {"w": tensor()}, claimed="data.pkl"), GROWS),
    "a large weight": (lambda path: write_archive(path, {"w": tensor(LARGE)}, LARGE), GROWS),
    "a small weight called large": (lambda path: write_archive(path, {"w": tensor(LARGE)}), GROWS),
    "a number repeated": (lambda path: write_archive(path, {"w": tensor(LARGE, 0)}), GROWS),
    "a weight of many names": (write_names, GROWS),
    "a large weight, old": (lambda path: write_old(path, {"w": tensor(LARGE)}, LARGE), DAMAGED),
    "a number repeated, old": (lambda path: write_old(path, {"w": tensor(LARGE, 0)}), GROWS),
    "a list": (lambda path: write_archive(path, [tensor()]), "holds a list"),
    "a part of an archive": (lambda path: path.write_bytes(b"PK\3\4" + b"x" * 99), DAMAGED),
    "a page": (lambda path: path.write_bytes(b"<html>not found</html>"), "is not a weights file"),
    "nothing": (lambda path: path.write_bytes(b""), "is not a weights file"),
}
SAFETENSORS = {
    "a header of a terabyte": (lambda path: write_header(path, {}, LARGE), DAMAGED),
    "a header beyond the file": (lambda path: write_header(path, {}, 10**6), DAMAGED),
    "items beyond the file": (lambda path: write_header(path, described([LARGE], 4 * LARGE)), DAMAGED),
    "more items than bytes": (lambda path: write_header(path, described([LARGE], 16)), DAMAGED),
    "items that overflow": (lambda path: write_header(path, described([2**62, 2**62], 16)), DAMAGED),
    "a deep header": (lambda path: write_header(path, b"[" * 100_000), DAMAGED),
    "no header": (lambda path: path.write_bytes(b""), DAMAGED),
}
ATTACKS = {name: ("pytorch_model.bin", *attack) for name, attack in BINS.items()}
ATTACKS |= {name: ("model.safetensors", *attack) for name, attack in SAFETENSORS.items()}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return release("image-llama", tmp_path_factory.mktemp("good") / "release")


@pytest.fixture(scope="module")
def attacks(tmp_path_factory) -> dict[str, Path]:
    """A file for each attack."""
    folder = tmp_path_factory.mktemp("attacks")
    files = {}
    for number, (name, (file, write, _)) in enumerate(ATTACKS.items()):
        files[name] = folder / str(number) / file
        files[name].parent.mkdir()
        write(files[name])
    return files


def alone(good: Path, folder: Path, file: Path) -> str:
    """A release whose file of weights is another one."""
    shutil.copytree(good, folder, ignore=lambda *_: ["pytorch_model.bin"])
    os.link(file, folder / file.name)
    return file.name


def second(good: Path, folder: Path, file: Path) -> str:
    """A release in two shards, of which the second is another one."""
    shutil.copytree(good, folder, ignore=lambda *_: ["pytorch_model.bin"])
    if file.suffix == ".bin":
        os.link(good / "pytorch_model.bin", folder / "first.bin")
    else:
        write_header(folder / "first.safetensors", described([4], 16))
    os.link(file, folder / f"second{file.suffix}")
    weight_map = {"query_tokens": f"first{file.suffix}", "vit_eos": f"second{file.suffix}"}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / f"{file.name}.index.json").write_text(index)
    return f"second{file.suffix}"


def open_eyes(path: Path) -> None:
    (path / "config.json").write_text(CLIPVisionConfig().to_json_string())
    open_vision(Checkpoint.parse(str(path)))


ROADS = {
    "from_pretrained": lambda path, good: MplugOwlForConditionalGeneration.from_pretrained(path),
    "from_pretrained of the base": lambda path, good: MplugOwlModel.from_pretrained(path),
    "AutoModel": lambda path, good: AutoModel.from_pretrained(path),
    "caption and chat": lambda path, good: load(str(path), "cpu"),
    "convert": lambda path, good: convert(str(path), path / "out"),
    "verify": lambda path, good: parts(str(path)),
    "merge into it": lambda path, good: merge(str(good), str(path), path / "out"),
    "quantize": lambda path, good: quantize(str(path), "bitsandbytes-8bit", path / "out"),
    "export": lambda path, good: export(str(path), str(good), path / "out"),
    "eyes of a build": lambda path, good: open_eyes(path),
    "language of a build": lambda path, good: open_language(Checkpoint.parse(str(path))),
}
# They open the file by its own name.
OF_FILES = {
    "convert a file": lambda path, good: convert(str(path), path.with_name("out"), base=str(good)),
    "a file beside another": lambda path, good: Checkpoint.parse(str(path)).open(),
}


def kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def taken(call) -> tuple[int, str]:
    """KiB that a refusal took, and its sentence."""
    Path("/proc/self/clear_refs").write_text("5")
    before = kib("VmRSS")
    with pytest.raises(ValueError) as caught:
        call()
    return kib("VmHWM") - before, str(caught.value)


def refused(road, path: Path, good: Path, file: str, message: str) -> None:
    size, said = taken(lambda: road(path, good))
    assert file in said and message in said
    assert "weights_only" not in said and "\n" not in said
    assert size < ALLOWED or taken(lambda: road(path, good))[0] < ALLOWED, f"{size} KiB"  # the first may import modules
    assert not Path("ran").exists() and not path.with_name("out").exists() and not (path / "out").exists()


needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")


@needs_proc
@pytest.mark.sampled(3)
@pytest.mark.parametrize("road", ROADS)
def test_folders(road, good, attacks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = [alone, second] if road in ("from_pretrained", "convert") else [alone]
    with pytest.raises(ValueError):
        alone(good, tmp_path / "warm", attacks["code"])
        ROADS[road](tmp_path / "warm", good)
    for number, (name, file) in enumerate(attacks.items()):
        for place in places:
            folder = tmp_path / f"{number}-{place.__name__}"
            named = place(good, folder, file)
            refused(ROADS[road], folder, good, named, ATTACKS[name][-1])


@needs_proc
@pytest.mark.parametrize("road", OF_FILES)
def test_files(road, good, attacks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        OF_FILES[road](attacks["code"], good)
    for name, file in attacks.items():
        refused(OF_FILES[road], file, good, file.name, ATTACKS[name][-1])


CLAIMS = {
    "vocabulary": {"text_config": {"vocab_size": 2**25}},
    "width": {"text_config": {"intermediate_size": 2**25}},
    "queries": {"num_query_tokens": 2**27},
    "positions": {"vision_config": {"image_size": 14 * 2**12}},
}


@needs_proc
@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("road", [road for road in ROADS if "build" not in road])
def test_a_configuration_that_claims_more_than_the_weights(road, claim, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bad"
    shutil.copytree(good, folder)
    config = json.loads((folder / "config.json").read_text())
    for name, value in CLAIMS[claim].items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    refused(ROADS[road], folder, good, "", " ")


ADAPTER_ROADS = {
    "from_pretrained": lambda path, good: MplugOwlForConditionalGeneration.from_pretrained(path),
    "caption and chat": lambda path, good: load(str(path), "cpu"),
    "load_adapter": lambda path, good: MplugOwlForConditionalGeneration.from_pretrained(good).load_adapter(str(path)),
    "merge": lambda path, good: merge(str(path), str(good), path / "out"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("road", ADAPTER_ROADS)
def test_adapters(road, good, attacks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": str(good)}
    for number, (name, file) in enumerate(attacks.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        os.link(file, folder / f"adapter_model{file.suffix}")
        with pytest.raises(ValueError) as caught:
            ADAPTER_ROADS[road](folder, good)
        assert f"adapter_model{file.suffix}" in str(caught.value) and ATTACKS[name][-1] in str(caught.value)
    assert not Path("ran").exists()


def index_of(*shards, **more) -> dict:
    return {"metadata": {}, "weight_map": {f"weight.{number}": shard for number, shard in enumerate(shards)}} | more


INDEXES = {
    "a path upwards": (index_of("a.bin", "../other/b.bin"), "names '../other/b.bin'"),
    "an absolute path": (index_of("/etc/passwd"), "names '/etc/passwd'"),
    "a path of Windows": (index_of("..\\b.bin"), "weights must be in the folder of their index"),
    "a drive": (index_of("C:b.bin"), "names 'C:b.bin'"),
    "a hidden file": (index_of(".b.bin"), "names '.b.bin'"),
    "no names": (index_of(5), "is not an index of weights"),
    "no map": ({"metadata": {}}, "is not an index of weights"),
    "no metadata": ({"weight_map": {}}, "is not an index of weights"),
    "a list": ([], "is not an index of weights"),
    "no JSON": ("{", "is not an index of weights"),
    "deep JSON": ("[" * 100_000, "is not an index of weights"),
}


@pytest.mark.parametrize("form", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("name", INDEXES)
def test_indexes(name, form, good, tmp_path):
    index, message = INDEXES[name]
    folder = tmp_path / "bad"
    shutil.copytree(good, folder, ignore=lambda *_: ["pytorch_model.bin"])
    (folder / f"{form}.index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    for road in ROADS.values():
        with pytest.raises(ValueError, match=r"index\.json") as caught:
            road(folder, good)
        assert message in str(caught.value)


@pytest.mark.parametrize("counts", [(LARGE, 0), (0, LARGE), (LARGE, LARGE)])
def test_a_gguf_file_that_claims_more_than_it_has(counts, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(64))
    with pytest.raises(ValueError, match=r"model\.gguf is truncated or damaged"):
        open_gguf(path)


@pytest.mark.parametrize("save", [{}, {"_use_new_zipfile_serialization": False}], ids=["now", "before torch 1.6"])
def test_what_torch_saves_opens(save, good, tmp_path):
    """Tied weights, slices, and types of all sizes, in either form."""
    weight = torch.randn(64, 8)
    weights = OrderedDict(
        a=weight, b=weight, c=weight, d=weight, slice=weight[3:5, ::2], half=weight.half(), one=torch.tensor(1)
    )
    weights["parameter"] = torch.nn.Parameter(weight)
    torch.save(weights, tmp_path / "some.bin", **save)
    opened = Checkpoint(str(tmp_path / "some.bin")).open()
    for name, value in weights.items():
        assert torch.equal(opened[name].make()[name], value)
