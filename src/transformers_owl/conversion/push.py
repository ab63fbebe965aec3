"""A folder made here, pushed to the Hub: weights, code and card in one commit or pull request."""

from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from .library import HTTPError


NEEDED = ("README.md", "config.json", "modeling_mplug_owl.py", "processor_config.json", "tokenizer.json")
WEIGHTS = (".safetensors", ".bin", ".index.json")


def push(
    folder: Path, repository: str, private: bool = False, create_pr: bool = False, update: bool = False
) -> CommitInfo:
    """
    Pushes a folder in one commit, so that a repository never holds half of it.

    Args:
        folder (`Path`): Made by another module here.
        repository (`str`): OWNER/NAME, made if it is not there.
        private (`bool`, defaults to `False`): Whether a new repository is private.
        create_pr (`bool`, defaults to `False`): Propose the commit as a pull request.
        update (`bool`, defaults to `False`): Commit onto a repository that holds files. Its weights are replaced.

    Raises:
        ValueError: for a folder that is not complete, a missing or wrong token, and a repository that holds files.
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
                f"{repository} exists and holds {len(present)} files: choose another name, propose the change by "
                "--create-pr, or replace what is there by --update."
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
        raise ValueError("There is no token for the Hub: run `hf auth login`, or set HF_TOKEN.") from error
    except HTTPError as error:
        raise OSError(f"{repository}: nothing was published. {reason(error)}") from error
    except RuntimeError as error:  # what the library makes of errors while a file is sent
        raise OSError(f"{repository}: nothing was published. {reason(error.__cause__)} ({error})") from error


def operations(folder: Path, card: ModelCard, present: list[str]) -> list:
    """All files of the folder, and weights that go because the folder has none of that name."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.name != "README.md"}
    gone = [name for name in present if name.endswith(WEIGHTS) and name not in files]
    return [
        CommitOperationAdd("README.md", str(card).encode()),
        *(CommitOperationAdd(name, path) for name, path in files.items()),
        *(CommitOperationDelete(name) for name in gone),
    ]


def reason(error: BaseException | None) -> str:
    if not isinstance(error, HfHubHTTPError):
        return f"The Hub cannot be reached, or broke off ({error}). Run the same command again."
    if error.response.status_code == 401:
        return "The Hub does not know the token: run `hf auth login` anew, or set HF_TOKEN."
    if error.response.status_code == 403:
        return f"The token may not write there: use one with write access to the repository. ({error.server_message})"
    return f"The Hub answered {error.response.status_code}. Run the same command again."
