"""Crosscoders on the hub of Hugging Face: fetched at a pinned revision."""

from __future__ import annotations

from pathlib import Path

from crosscoders.errors import UserError
from crosscoders.formats.recognise import FORMATS

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
