"""Small files of data in which every sample can be told from the others."""

import io
import json
import tarfile
from pathlib import Path

import PIL.Image
import yaml


class DataFolder:
    """Writes data; sample `number` has an image of the grey level `number` and the caption "grey NUMBER"."""

    def __init__(self, folder: Path):
        self.folder = folder

    def image(self, number: int) -> PIL.Image.Image:
        return PIL.Image.new("RGB", (16, 12), (number, number, number))

    def captions(self, numbers, name: str = "captions.jsonl") -> dict:
        rows = []
        for number in numbers:
            self.image(number).save(self.folder / f"{number}.png")
            rows.append({"file_name": f"{number}.png", "text": f"grey {number}"})
        return self.jsonl("captions", rows, name)

    def text(self, numbers, name: str = "text.jsonl") -> dict:
        return self.jsonl("alpaca", [{"instruction": f"Say {n}.", "output": f"grey {n}"} for n in numbers], name)

    def jsonl(self, form: str, rows: list[dict], name: str = "data.jsonl") -> dict:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"format": form, "path": str(self.folder / name)}

    def recipe(self, content: dict) -> Path:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def shard(self, name: str, numbers) -> str:
        """A tar file in img2dataset's layout."""
        with tarfile.open(self.folder / name, "w") as tar:
            for number in numbers:
                image = io.BytesIO()
                self.image(number).save(image, "png")
                for suffix, data in (("png", image.getvalue()), ("txt", f"grey {number}".encode()), ("json", b"{}")):
                    entry = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        return str(self.folder / name)
