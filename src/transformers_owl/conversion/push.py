"""Pushes a model folder to the Hub: weights, code and card in one commit or pull request."""

import fnmatch
import json
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from .library import HTTPError


NEEDED = ("README.md", "config.json", "modeling_mplug_owl.py", "processor_config.json", "tokenizer.json")
WEIGHTS = (".safetensors", ".bin", ".index.json")
# What a model is made of. Nothing else of its folder is published: no keys, logs, states of optimizers or leftovers.
PUBLISHED = (
    "README.md", "LICENSE*", "NOTICE*", "*_mplug_owl.py", "config.json", "generation_config.json",
    "processor_config.json", "*preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json",
)  # fmt: skip


def push(
    folder: Path, repository: str, private: bool = False, create_pr: bool = False, update: bool = False
) -> CommitInfo:
    """
    Pushes a folder in one commit, so that a repository never holds a part of it.

    Args:
        folder (`Path`): Model folder made by this package.
        repository (`str`): OWNER/NAME, created if it does not exist.
        private (`bool`, defaults to `False`): Whether a new repository is private.
        create_pr (`bool`, defaults to `False`): Whether to open a pull request.
        update (`bool`, defaults to `False`): Whether the repository may already hold files; its weights are replaced.

    Raises:
        ValueError: for an incomplete folder, a missing or wrong token, and a repository that already holds files.
        OSError: if the Hub refuses or cannot be reached; nothing is published then.
    """
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} is not a complete model folder: it lacks {', '.join(missing) or 'weights'}.")
    api = HfApi()
    try:
        api.whoami()
        present = api.list_repo_files(repository) if api.repo_exists(repository) else []
        if not create_pr and not update and set(present) - {".gitattributes"}:
            raise ValueError(
                f"{repository} exists and holds {len(present)} files: choose another name, open a pull request by "
                "--create-pr, or replace the files by --update."
            )
        card = ModelCard(
            (folder / "README.md").read_text(encoding="utf-8").replace(f'"{folder.name}"', f'"{repository}"')
        )
        card.validate()
        api.create_repo(repository, private=private, exist_ok=True)
        return api.create_commit(
            repository,
            operations(folder, card, present),
            commit_message=f"mPLUG-Owl: {folder.name}",
            create_pr=create_pr,
        )
    except LocalTokenNotFoundError as error:
        raise ValueError("No token for the Hub was found: run `hf auth login`, or set HF_TOKEN.") from error
    except HTTPError as error:
        raise OSError(f"{repository}: nothing was published. {reason(error)}") from error
    except RuntimeError as error:  # what the library makes of errors while a file is sent
        raise OSError(f"{repository}: nothing was published. {reason(error.__cause__)} ({error})") from error


def operations(folder: Path, card: ModelCard, present: list[str]) -> list:
    """Adds the model's files, and deletes weights that the folder does not have."""
    found = sorted(path for path in folder.iterdir() if path.is_file())
    files = {path.name: path for path in found if is_published(path)} | {"README.md": folder / "README.md"}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        if missing := named - set(files):
            raise ValueError(
                f"{index} names {', '.join(sorted(missing))}, which the folder does not have: make the folder again."
            )
        files = {name: path for name, path in files.items() if not name.endswith(".safetensors") or name in named}
    if left := [path.name for path in found if path.name not in files]:
        print(f"Not published, since they are not part of a model: {', '.join(left)}")
    gone = [name for name in present if name.endswith(WEIGHTS) and name not in files]
    return [
        CommitOperationAdd("README.md", str(card).encode()),
        *(CommitOperationAdd(name, path) for name, path in files.items() if name != "README.md"),
        *(CommitOperationDelete(name) for name in gone),
    ]


def is_published(path: Path) -> bool:
    """Whether a file is published, by its name; links are not, since they may lead to any file."""
    return not path.is_symlink() and any(fnmatch.fnmatchcase(path.name, pattern) for pattern in PUBLISHED)


def reason(error: BaseException | None) -> str:
    if not isinstance(error, HfHubHTTPError):
        return f"The Hub cannot be reached, or closed the connection ({error}). Run the same command again."
    if error.response.status_code == 401:
        return "The Hub does not accept the token: run `hf auth login` again, or set HF_TOKEN."
    if error.response.status_code == 403:
        return f"The token has no write access: use one with write access to the repository. ({error.server_message})"
    return f"The Hub answered {error.response.status_code}. Run the same command again."
