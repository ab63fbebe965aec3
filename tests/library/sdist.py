"""Fetches the library's own tests: they come with the source archive of the installed version."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers


HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "library_tests"


def fetch() -> Path:
    """The folder with the package `transformers_tests`; it is downloaded once a version."""
    version = transformers.__version__
    folder = CACHE / version
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        scratch = Path(name)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*download, "--dest", scratch, f"transformers=={version}"], check=True)
        with tarfile.open(scratch / f"transformers-{version}.tar.gz") as archive:
            archive.extractall(scratch, filter="data")
        (scratch / "ready").mkdir()
        (scratch / f"transformers-{version}" / "tests").rename(scratch / "ready" / "transformers_tests")
        (scratch / "ready").rename(folder)
    return folder


def put_on_path() -> None:
    """Makes `transformers_tests` importable: the archive's files, and stand-ins for those that it lacks."""
    folder = fetch()
    shutil.copytree(HERE / "stand_ins", folder, dirs_exist_ok=True)
    sys.path.insert(0, str(folder))
