"""The build step: code beside the miniature's weights, as every model repository has it; a wheel has the cards too."""

import shutil
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PackageData(BuildHookInterface):
    """Copies the code anew for every wheel and editable install; git ignores the copies. A clone has its own cards."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package = Path(self.root, "src/transformers_owl")
        for old in (package / "miniature").glob("*.py"):
            old.unlink()
        for file in (package / "mplug_owl").glob("[!_]*.py"):
            shutil.copyfile(file, package / "miniature" / file.name)
        if version != "editable":
            build_data["force_include"][str(Path(self.root, "model_cards"))] = "transformers_owl/conversion/model_cards"
