"""The build step: the miniature's folder gets the code of the Hub folder, as every model repository has it."""

import shutil
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CodeBesideWeights(BuildHookInterface):
    """Puts the code beside the weights: in a wheel, or for an editable install as copies that git ignores."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package = Path(self.root, "src/transformers_owl")
        for file in (package / "mplug_owl").glob("[!_]*.py"):
            if version == "editable":
                shutil.copyfile(file, package / "miniature" / file.name)
            else:
                build_data["force_include"][str(file)] = f"transformers_owl/miniature/{file.name}"
