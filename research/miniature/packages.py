"""Packages of a registry that the miniature is made of: fetched once, checked, kept in a cache."""

import base64
import hashlib
import io
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path


CACHE = Path.home() / ".cache" / "transformers_owl" / "packages"


@dataclass(frozen=True)
class Package:
    """
    A file of the npm registry.

    Args:
        url (`str`): Where it lies.
        hash (`str`): "sha512-" and the digest in base64, as the registry has it.
        licence (`str`): Of its drawings or weights.
        credit (`str`): Who made them.
    """

    url: str
    hash: str
    licence: str
    credit: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def npm(name: str, version: str, hash: str, licence: str, credit: str) -> Package:
    file = f"{name.rpartition('/')[2]}-{version}.tgz"
    return Package(f"https://registry.npmjs.org/{name}/-/{file}", f"sha512-{hash}", licence, credit)


PACKAGES = {
    "noto": npm(
        "@iconify-json/noto", "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0", "Noto Emoji, Google",
    ),
    "noto-v1": npm(
        "@iconify-json/noto-v1", "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0", "Noto Emoji 1, Google",
    ),
    "fluent-flat": npm(
        "@iconify-json/fluent-emoji-flat", "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT", "Fluent Emoji, Microsoft",
    ),
    "fluent-3d": npm(
        "@lobehub/fluent-emoji-3d", "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT", "Fluent Emoji, Microsoft",
    ),
    "fxemoji": npm(
        "@iconify-json/fxemoji", "1.2.2",
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "Apache-2.0", "FxEmojis, Mozilla",
    ),
    "emojione": npm(
        "@iconify-json/emojione", "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0", "EmojiOne 2.3, Ranks.com",
    ),
    "twemoji": npm(
        "@iconify-json/twemoji", "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0", "Twemoji, Twitter",
    ),
    "openmoji": npm(
        "@iconify-json/openmoji", "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        "CC-BY-SA-4.0, for evaluation only", "OpenMoji, HfG Schwäbisch Gmünd",
    ),
}  # fmt: skip


class PackageError(ValueError):
    """A package that is missing, or is another one than the recipe was made with."""


def fetch(package: Package, cache: Path = CACHE) -> Path:
    """
    The package's file in the cache, fetched if it is not there yet.

    Raises:
        PackageError: if the registry does not have it, or has other bytes than before.
    """
    file = cache / package.name
    if file.exists():
        check(package, file.read_bytes(), str(file))
        return file
    try:
        with urllib.request.urlopen(package.url, timeout=180) as answer:
            data = answer.read()
    except OSError as error:
        raise PackageError(
            f"{package.url} could not be downloaded ({error}). Check whether the registry still has this version, or "
            f"put a copy of the file at {file}."
        ) from error
    check(package, data, package.url)
    cache.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(data)
    partial.replace(file)
    return file


def check(package: Package, data: bytes, place: str) -> None:
    """Whether these are the bytes that the recipe was made with."""
    kind, _, expected = package.hash.partition("-")
    found = base64.b64encode(hashlib.new(kind, data).digest()).decode()
    if found != expected:
        raise PackageError(
            f"{place} has the {kind} digest {found}, but must have {expected}: it was changed or truncated. "
            "Delete it to download it again."
        )


def members(file: Path, suffix: str) -> dict[str, bytes]:
    """The files of a package whose names end so."""
    with tarfile.open(fileobj=io.BytesIO(file.read_bytes())) as tar:
        return {
            member.name: opened.read()
            for member in tar
            if member.name.endswith(suffix) and (opened := tar.extractfile(member)) is not None
        }
