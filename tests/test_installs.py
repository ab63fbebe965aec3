"""What is built holds all that it should, and the package works however it was installed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_miniature import CAPTIONS, number_read_without_the_package

import transformers_owl


ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asks git for the files of this clone")


def run(*command, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked(folder: str = ".") -> list[str]:
    """Files of this clone as they are now, new ones included."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", folder, cwd=ROOT).splitlines()
    return sorted(name for name in set(listed) if (ROOT / name).exists())


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The clone's files in a repository of their own."""
    folder = tmp_path_factory.mktemp("clone") / "transformers_owl"
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    run("git", "init", "-q", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run("git", "-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "-q", "-m", "all", cwd=folder)
    return folder


def test_no_file_is_a_symbolic_link():
    assert not [line for line in run("git", "ls-files", "--stage", cwd=ROOT).splitlines() if line.startswith("120000")]


def test_no_index_is_asked_for_this_package():
    """None has it yet; an address of Git does."""
    hub = "src/transformers_owl/mplug_owl/"
    for name in tracked():
        text = (ROOT / name).read_text(encoding="utf-8", errors="ignore") if not name.startswith(hub) else ""
        asked = re.findall(r"""pip install[^\n`]*[ "']transformers[-_]owl(?!\S*@|\S* @ git\+)\S*""", text)
        assert not asked, f"{name}: {asked}"


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_package_and_the_code_beside_the_miniature(tree, tmp_path):
    """Built from the tree and from an sdist, whatever an earlier build has left in the tree."""
    pytest.importorskip("hatchling")
    (tree / "src/transformers_owl/miniature/old_mplug_owl.py").write_text("of an earlier build")
    run(sys.executable, "-m", "hatchling", "build", "-d", tmp_path, cwd=tree)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "second", cwd=unpacked)

    expected = {name.removeprefix("src/"): (ROOT / name).read_bytes() for name in tracked("src")}
    for name, content in list(expected.items()):
        folder, _, file = name.rpartition("/")
        if folder == "transformers_owl/mplug_owl" and file.endswith(".py") and file != "__init__.py":
            expected[f"transformers_owl/miniature/{file}"] = content
    for name in tracked("model_cards"):
        expected[f"transformers_owl/conversion/{name}"] = (ROOT / name).read_bytes()
    for wheel in (*tmp_path.glob("*.whl"), *tmp_path.glob("second/*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if ".dist-info/" not in name]
            assert sorted(names) == sorted(expected)
            assert all(archive.read(name) == expected[name] for name in names)


def from_a_wheel(tree: Path, here: Path) -> list:
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", here, tree)
    return ["--force-reinstall", *here.glob("*.whl")]


def from_an_sdist(tree: Path, here: Path) -> list:
    build = "import sys; from hatchling.build import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-m", "venv", here / "builder")
    run(here / "builder/bin/python", "-m", "pip", "install", "-q", "hatchling")
    run(here / "builder/bin/python", "-c", build, here, cwd=tree)
    return list(here.glob("*.tar.gz"))


def from_git(tree: Path, here: Path) -> list:
    return [f"git+file://{tree}"]


def editable(tree: Path, here: Path) -> list:
    shutil.copytree(tree, here / "tree")
    return ["-e", here / "tree"]


def from_a_zip(tree: Path, here: Path) -> list:
    """As a browser downloads it; `zipfile` makes no links."""
    run("git", "archive", "--output", here / "tree.zip", "HEAD", cwd=tree)
    with zipfile.ZipFile(here / "tree.zip") as archive:
        archive.extractall(here / "tree")
    return [here / "tree"]


def from_a_clone_on_windows(tree: Path, here: Path) -> list:
    run("git", "clone", "-q", "-c", "core.symlinks=false", "-c", "core.autocrlf=true", tree, here / "tree")
    return [here / "tree"]


def as_in_docker(tree: Path, here: Path) -> list:
    """By the COPY and RUN lines of the Dockerfile."""
    lines = [line.split(maxsplit=1) for line in (tree / "examples/serving/Dockerfile").read_text().splitlines()]
    for words in (shlex.split(rest) for instruction, rest in lines if instruction == "COPY"):
        *sources, target = words
        for source in sources:
            into = here / target.removeprefix("/")
            if (tree / source).is_dir():
                shutil.copytree(tree / source, into)
            else:
                (into if target.endswith("/") else into.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy(tree / source, into)
    (command,) = [shlex.split(rest) for instruction, rest in lines if instruction == "RUN"]
    assert command[:4] == ["uv", "pip", "install", "--system"]
    return [here / word.removeprefix("/") if word.startswith("/") else word for word in command[4:]]


ROADS = [from_a_wheel, from_an_sdist, from_git, editable, from_a_zip, from_a_clone_on_windows, as_in_docker]


@pytest.mark.slow
@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.__name__)
def test_it_works_however_it_was_installed(road: Callable[[Path, Path], list], tree, tmp_path):
    """In a fresh environment that sees this one's packages."""
    (tmp_path / "files").mkdir()
    (tmp_path / "empty").mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python, command = tmp_path / "venv/bin/python", tmp_path / "venv/bin/transformers-owl"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (own / "outer.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    install = ("-m", "pip", "--python", python, "install", "-q", "--no-deps")
    run(sys.executable, *install, *road(tree, tmp_path / "files"))

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    here = {"cwd": tmp_path / "empty", "env": environment}
    assert run(command, "--version", **here).strip() == transformers_owl.__version__
    assert "--checkpoint" in run(command, "convert", "--help", **here)
    said = dict(line.split(": ", 1) for line in run(command, "caption", **here).splitlines())
    assert {Path(image).stem: answer for image, answer in said.items()} == CAPTIONS
    where = "from importlib.util import find_spec; print(find_spec('transformers_owl').origin)"
    package = Path(run(python, "-c", where, **here).strip()).parent
    assert package.is_relative_to(tmp_path)
    image = str(package / "demo/pictures/number.png")
    assert number_read_without_the_package(python, package / "miniature", image, tmp_path / "empty") == "47"
