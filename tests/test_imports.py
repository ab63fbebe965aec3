"""
Imports run downward only, the Hub folder stands alone, what leans on the insides of other packages stands in fences,
help needs no torch, and no function is longer than a screen and a half.
"""

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import transformers_owl
import transformers_owl_cli.commands


PACKAGE = Path(transformers_owl.__file__).parent
COMMAND = Path(transformers_owl_cli.__file__).parent
COMMANDS = sorted(typer.main.get_command(transformers_owl_cli.commands.app).commands)
FILES = sorted(
    path for folder in (PACKAGE, COMMAND) for path in folder.rglob("*.py") if path.parent.name != "miniature"
)
SCRIPTS = sorted((Path(__file__).parent.parent / "conversion").glob("*.py"))
HUB_FILES = sorted((PACKAGE / "mplug_owl").glob("*.py"))
# What a Hub file may import: the standard library, transformers and what transformers itself needs, siblings, and PyAV
# where a video file is opened.
HUB_IMPORTS = {
    "av", "base64", "bisect", "collections", "contextlib", "copy", "dataclasses", "difflib", "functools", "http",
    "importlib", "inspect", "io", "ipaddress", "json", "math", "mimetypes", "os", "packaging", "pathlib", "pickle",
    "pickletools", "re", "socket", "ssl", "string", "struct", "time", "typing", "urllib", "warnings", "zipfile", "zlib",
    "PIL",
    "huggingface_hub", "jinja2", "numpy", "safetensors", "tokenizers", "torch", "transformers",
}  # fmt: skip
# A room may import those below it.
ROOMS = [
    "library", "asgi", "journal", "mplug_owl", "fresh", "inference", "loading", "pages", "serving", "conversion",
    "evaluation", "training", "collections", "demo", "cli",
]  # fmt: skip


def imports(path: Path) -> list[tuple[int, str]]:
    """`(level, module)` of every import; level 0 is absolute."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_hub_files_import_siblings_flat_and_nothing_else(path):
    siblings = {file.stem for file in HUB_FILES}
    for level, module in imports(path):
        assert level in (0, 1), module
        if level == 1:
            assert module in siblings
        else:
            assert module.partition(".")[0] in HUB_IMPORTS


def room(path: Path) -> str:
    """The room of a file; the package of the command is above all."""
    if path.is_relative_to(COMMAND) or path.name == "__main__.py":
        return "cli"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [file for file in FILES if room(file) in ROOMS], ids=lambda path: path.name)
def test_imports_run_downward(path):
    above = COMMAND.parent if room(path) == "cli" else PACKAGE
    depth = len(path.relative_to(above).parts)
    for level, module in imports(path):
        target = module.removeprefix("transformers_owl.") if module.startswith("transformers_owl.") else module
        if module.startswith("transformers_owl_cli"):
            assert room(path) == "cli", f"{path} imports {module}"
        if level == depth or module.startswith("transformers_owl."):
            below = target.partition(".")[0]
            if below in ROOMS and below != room(path):
                assert ROOMS.index(below) < ROOMS.index(room(path)), f"{path} imports {module}"


# Where a room's files may lean on what other packages do not document, each name with an entry in `LEANS_ON`. The first
# room are the files beside the others.
FENCES = {
    "": ["library.py", "pages.py"],
    "mplug_owl": ["mplug_owl/library_mplug_owl.py"],
    "inference": ["inference/library.py"],
    "training": ["training/library.py"],
    "collections": [],
    "conversion": ["conversion/library.py"],
    "evaluation": ["evaluation/harness.py"],
    "serving": ["serving/engine.py", "serving/library.py", "serving/vocabulary.py"],
}
# The modules whose names these packages document.
DOCUMENTED = {
    "transformers": {"transformers"}, "accelerate": {"accelerate", "accelerate.utils"}, "datasets": {"datasets"},
    "gradio": {"gradio"}, "lmms_eval": set(), "peft": {"peft", "peft.utils"}, "vllm": {"vllm"},
    "webdataset": {"webdataset"},
}  # fmt: skip
SUBMODULES_ALLOWED = ("cli.py", "mplug_owl")
FENCED = [
    path
    for path in FILES
    if path.is_relative_to(PACKAGE) and path.relative_to(PACKAGE).parent.as_posix().replace(".", "") in FENCES
]


def fences(path: Path) -> list[Path]:
    """Those of the file's room."""
    return [PACKAGE / name for name in FENCES[path.relative_to(PACKAGE).parent.as_posix().replace(".", "")]]


@functools.cache
def leans_on(fence: Path) -> dict[str, str]:
    """The entries of a fence, which need not be importable here."""
    constants: dict[str, object] = {}
    for node in ast.parse(fence.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if isinstance(node.value, ast.Constant):
                constants[name] = node.value.value
            elif name == "LEANS_ON":
                return eval(compile(ast.Expression(node.value), str(fence), "eval"), constants)
    raise AssertionError(f"{fence} has no LEANS_ON")


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def dotted(node: ast.AST) -> list[str]:
    """The names of `a.b.c`, `a.b[...].c` and `a.b(...).c` from the first on; empty where it does not begin with one."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*dotted(node.value), node.attr] if dotted(node.value) else []
    return (
        dotted(node.value if isinstance(node, ast.Subscript) else node.func)
        if isinstance(node, (ast.Subscript, ast.Call))
        else []
    )


class Leaning:
    """What a file leans on: `(kind, name)` of every place."""

    def __init__(self, path: Path):
        self.path = path
        self.tree = ast.parse(path.read_text())
        self.own = own_names(self.tree) | names_of_hub_files()
        self.imported: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                self.imported |= {(name.asname or name.name).partition(".")[0]: name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                self.imported |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
        self.foreign = {name for name, whole in self.imported.items() if is_foreign(whole)}
        for node in ast.walk(self.tree):  # what runs over foreign things is one
            if isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.target, ast.Name):
                inner = node.iter.elts if isinstance(node.iter, (ast.Tuple, ast.List)) else []
                if any(dotted(each)[:1] and dotted(each)[0] in self.foreign for each in inner):
                    self.foreign.add(node.target.id)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for node in ast.walk(self.tree):
            yield from self.imports(node)
            yield from self.attributes(node)
            yield from self.writes(node)
        yield from self.overrides()

    def imports(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        absolute = isinstance(node, ast.ImportFrom) and node.level == 0
        names = [f"{node.module}.{each.name}" for each in node.names] if absolute else []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        for name in names:
            package = name.partition(".")[0]
            module = node.module if absolute else name
            if is_private(name):
                yield "import", name
            elif package in DOCUMENTED and module not in DOCUMENTED[package]:
                yield "submodule", name

    def attributes(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in self.own:
            names = dotted(node)
            yield "module" if names and names[0] in self.foreign else "attribute", ".".join(names) or node.attr

    def writes(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        """Into modules and what they hold: by assignment, by `setattr`, and by methods that change."""
        targets: list[ast.AST] = []
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete)):
            targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
            targets = [node.func] if dotted(node.func)[-2:-1] and dotted(node.func)[-2].isupper() else []
        elif isinstance(node, ast.Call) and dotted(node.func) in (["setattr"], ["delattr"]):
            targets = [ast.Attribute(node.args[0], "")]
        for target in targets:
            names = dotted(target)
            if isinstance(target, ast.Subscript) and names[:1] in (["vars"], ["globals"]):
                yield "write", ast.unparse(target)
            elif isinstance(target, (ast.Attribute, ast.Subscript)) and names and names[0] in self.foreign:
                yield "write", ".".join([self.imported.get(names[0], names[0]), *names[1:]])

    def overrides(self) -> Iterator[tuple[str, str]]:
        """Private names of a class that a base in another package has too, among its attributes or in its methods."""
        try:
            module = importlib.import_module(".".join(["transformers_owl", *self.module]))
        except ModuleNotFoundError as error:
            assert error.name.partition(".")[0] in ("gradio", "lmms_eval", "vllm", "starlette"), error
            return
        for node in (node for node in self.tree.body if isinstance(node, ast.ClassDef)):
            for base in vars(module)[node.name].__mro__[1:]:
                if is_foreign(base.__module__):
                    theirs = {*vars(base), *private_attributes(base)}
                    for name in sorted(own_names(node) & theirs):
                        if is_private(name):
                            yield "override", f"{base.__module__}.{base.__qualname__}.{name}"

    @property
    def module(self) -> list[str]:
        parts = self.path.relative_to(PACKAGE).with_suffix("").parts
        return [part for part in parts if part != "__init__"]


# Methods that change a constant.
CHANGING = {"add", "append", "clear", "discard", "extend", "insert", "pop", "remove", "setdefault", "update"}


def own_names(tree: ast.AST) -> set[str]:
    """What is defined in it: functions, classes, variables, attributes of `self`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) == ["self"]:
            found.add(node.attr)
    return found


@functools.cache
def names_of_hub_files() -> set[str]:
    return set().union(*(own_names(ast.parse(file.read_text())) for file in HUB_FILES))


def is_foreign(name: str) -> bool:
    """Whether a module or a name in it is another package's, and not of Python itself."""
    package = name.partition(".")[0]
    return package != "transformers_owl" and package not in sys.stdlib_module_names


@functools.cache
def private_attributes(base: type) -> list[str]:
    """Private attributes of `self` in the methods of a class."""
    try:
        return re.findall(r"self\.(_\w+)", inspect.getsource(base))
    except (OSError, TypeError):  # written in C
        return []


def is_declared(kind: str, name: str, entries: dict[str, str]) -> bool:
    """Imports by their whole name; what is private by each private part of it."""
    if kind in ("import", "submodule"):
        return any(entry == name or entry.startswith(f"{name}.") for entry in entries)
    parts = {part for entry in entries for part in entry.split(".")}
    wanted = [part for part in name.split(".") if is_private(part)] or re.findall(r"[A-Z]\w+", name)
    return all(part in parts for part in wanted)


@pytest.mark.parametrize("path", FENCED, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_what_is_not_documented_stands_in_the_fence(path):
    """
    Outside it no private name is imported or taken from a module, no submodule that its package does not document is
    looked into, and nothing is written into another package. What is overridden has an entry there too.
    """
    entries = {name: what for fence in fences(path) for name, what in leans_on(fence).items()}
    within = ("attribute", "override") if path not in fences(path) else None
    for kind, name in Leaning(path):
        if kind == "submodule" and path.relative_to(PACKAGE).parts[0] in SUBMODULES_ALLOWED:
            continue
        assert within is None or kind in within, f"{path.name}: {kind} of {name} outside of {fences(path)}"
        assert is_declared(kind, name, entries), f"{path.name}: {kind} of {name} has no entry in {fences(path)}"


@pytest.mark.parametrize("room", FENCES)
def test_every_entry_of_a_fence_is_leant_on(room):
    text = "".join(path.read_text() for path in FENCED if fences(path) == [PACKAGE / name for name in FENCES[room]])
    for fence in FENCES[room]:
        for name in leans_on(PACKAGE / fence):
            if ": " not in name:
                last = name.rpartition(".")[2]
                assert len(re.findall(rf"\b{last}\b", text)) > 1, f"{fence}: {name} is leant on no more"


def test_every_room_has_its_fence():
    assert {room(path) for path in FILES if room(path) in ROOMS} - {room(path) for path in FENCED} <= {
        "mplug_owl",
        "demo",
    }


LEANINGS = {
    "import torch._inductor": [("import", "torch._inductor")],
    "from torch.utils._pytree import tree_map": [("import", "torch.utils._pytree.tree_map")],
    "from transformers.trainer_utils import get_last_checkpoint": [
        ("submodule", "transformers.trainer_utils.get_last_checkpoint")
    ],
    "def f():\n    import webdataset.gopen": [("submodule", "webdataset.gopen")],
    "import torch\ntorch._dynamo.reset()": [("module", "torch._dynamo")],
    "import torch\ntorch.compiler.config.recompile_limit = 3": [("write", "torch.compiler.config.recompile_limit")],
    "from transformers import NAMES\nNAMES['a'] = 1": [("write", "transformers.NAMES")],
    "from transformers import NAMES\nNAMES.update(a=1)": [("write", "transformers.NAMES.update")],
    "from transformers import A, B\nfor names in (A, B):\n    names['a'] = 1": [("write", "names")],
    "import transformers\nsetattr(transformers, 'A', 1)": [("write", "transformers.")],
    "import sys\nvars(sys.modules['a'])['b'] = 1": [("write", "vars(sys.modules['a'])['b']")],
    "def f(model):\n    return model.config._attn_implementation": [("attribute", "model.config._attn_implementation")],
    "class A:\n    def __init__(self):\n        self._mine = 1\n    def f(self):\n        return self._mine": [],
    "import torch\nfrom torch import nn\nx = torch.nn.Linear(1, 2)\nx.weight = nn.Parameter(x.weight)": [],
}


@pytest.mark.parametrize("source", LEANINGS)
def test_leanings_are_found(source, tmp_path, monkeypatch):
    path = tmp_path / "some.py"
    path.write_text(source)
    monkeypatch.setattr(Leaning, "overrides", lambda self: [])
    assert list(Leaning(path)) == LEANINGS[source]


def test_commands_for_little_memory_leave_out_what_training_needs():
    """The Trainer and `datasets` alone take a gigabyte of address space."""
    code = (
        "import sys; from transformers_owl.conversion import build, convert, export; "
        "print({'transformers.trainer', 'datasets', 'peft'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_help_and_a_mistyped_name_import_neither_torch_nor_transformers():
    asked = [[name, "--help"] for name in COMMANDS] + [["--help"], [], ["captoin"]]
    code = f"""
import sys
from transformers_owl_cli.commands import app
for words in {asked}:
    try:
        app(words, prog_name="transformers-owl")
    except SystemExit:
        print(words, {{"torch", "transformers", "transformers_owl"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for words in asked:
        assert f"{words} set()\n" in done.stdout
        assert words == ["captoin"] or f"Usage: {' '.join(['transformers-owl', *words[:-1]])} " in done.stdout
    assert "No such command 'captoin'. Did you mean 'caption'?" in done.stderr


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_function_is_longer_than_75_lines(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 75, node.name
