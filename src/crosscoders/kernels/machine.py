"""The machine that kernels run on: its processor, its caches, and a folder for files that are made once per machine."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from pathlib import Path

from crosscoders.home import user_cache

HALF_A_MEGABYTE = 512 << 10


@functools.cache
def processor() -> str:
    """Vendor, model and instructions of the processor, a line each, to tell apart processors that share a folder."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    first = lines[: lines.index("")] if "" in lines else lines
    return "\n".join(line for line in first if line.startswith(("vendor_id", "model", "stepping", "flags")))


def made_by_intel() -> bool:
    """Whether the processor is Intel's, for which MKL is made."""
    return "GenuineIntel" in processor()


@functools.cache
def second_cache() -> int:
    """Bytes of a core's second-level cache; half a megabyte where the system does not say."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    size = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return int(size[:-1]) << 10 if size.endswith("K") else HALF_A_MEGABYTE


def cache_folder() -> Path:
    """The user's cache folder of this package; a temporary folder where the user's cannot be written, or others can.

    Code is loaded from it, so nobody else may write there.
    """
    folder = user_cache("crosscoders")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _keep_to_oneself(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="crosscoders-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _keep_to_oneself(folder: Path) -> None:
    """Take every right at a folder from other users.

    Raises
    ------
    PermissionError
        The folder is another user's, or a link.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is not the user's own folder")
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
