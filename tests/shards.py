"""Small images of one grey level, in tar shards."""

import io
import tarfile
from pathlib import Path

from PIL import Image


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, levels, text: bool = True) -> str:
    with tarfile.open(path, "w") as archive:
        for level in levels:
            files = {"png": png(level), **({"txt": b"a caption"} if text else {})}
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{level:03}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return str(path)


def cut(path: Path, levels=range(4)) -> str:
    data = Path(write_tar(path, levels)).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 5])
    return str(path)
