"""The build step: the miniature's folder gets the code of the Hub folder, as every model repository has it."""

import shutil
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CodeBesideWeights(BuildHookInterface):
    """Copies the code anew for every wheel and editable install; git ignores the copies."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package = Path(self.root, "src/transformers_owl")
        for old in (package / "miniature").glob("*.py"):
            old.unlink()
        for file in (package / "mplug_owl").glob("[!_]*.py"):
            shutil.copyfile(file, package / "miniature" / file.name)
