"""Crosscoders on the hub of Hugging Face: fetched at a pinned revision, and pushed with a model card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from crosscoders.errors import UserError
from crosscoders.formats.portable import Portable
from crosscoders.formats.recognise import FORMATS, write

FILES = sorted({file for module in FORMATS.values() for file in module.FILES})
"""Files of crosscoders; nothing else is fetched."""


def fetch(repo: str, revision: str, folder: str | None = None) -> Path:
    """Fetch the files of a crosscoder.

    Parameters
    ----------
    repo : str
        Id of the repository.
    revision : str
        Commit hash.
    folder : str, optional
        Folder within the repository.

    Returns
    -------
    Path
        The folder with the files, in the cache of the hub's own client.

    Raises
    ------
    UserError
        The hub cannot be reached, or has no such repository or revision.
    """
    from huggingface_hub import errors, snapshot_download

    place = f"{folder.strip('/')}/" if folder else ""
    try:
        found = snapshot_download(repo, revision=revision, allow_patterns=[f"{place}{file}" for file in FILES])
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(f"{repo}@{revision}: cannot be fetched from the hub ({_reason(error)})") from None
    return Path(found) / place


def _reason(error: Exception) -> str:
    """What an error of the hub's client says, in a line."""
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:120]


def push(portable: Portable, repo: str, format_name: str, card: str, private: bool = False) -> str:
    """Put a crosscoder with its model card into a repository of the hub, which is made where there is none.

    Parameters
    ----------
    portable : Portable
    repo : str
        Id of the repository; the token is that of `hf auth login`, or the variable `HF_TOKEN`.
    format_name : str
        One of :data:`crosscoders.formats.recognise.WRITTEN`.
    card : str
        Text of `README.md`.
    private : bool
        Whether a new repository is private.

    Returns
    -------
    str
        Commit hash, by which :func:`fetch` finds these files again.

    Raises
    ------
    UserError
        The format cannot express the crosscoder, the hub cannot be reached, or it refuses the files.
    """
    from huggingface_hub import HfApi, errors

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(portable, folder, format_name)
        (folder / "README.md").write_text(card, encoding="utf-8")
        try:
            HfApi().create_repo(repo, private=private, exist_ok=True)
            done = HfApi().upload_folder(
                repo_id=repo, folder_path=folder, commit_message=f"Crosscoder as {format_name}"
            )
        except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{repo}: cannot be pushed to the hub ({_reason(error)})") from None
    return done.oid
