"""Says in one line why the lock cannot be installed on this machine, before anything is downloaded."""

import platform
import sys

PLATFORMS = {"Linux": ("x86_64", "aarch64"), "Darwin": ("arm64",)}
"""Systems and processors for which the pinned torch is built."""
OLDEST_MACOS = 15
"""The first macOS for which the pinned netCDF4 is built."""


def problem():
    """Why the lock does not fit this machine, or None."""
    python, system, processor = sys.version_info[:3], platform.system(), platform.machine()
    if python < (3, 11):
        found = ".".join(map(str, python))
        return f"Python is {found} ({sys.executable}); expected 3.11 or newer, as in: make PYTHON=python3.12 ..."
    if processor not in PLATFORMS.get(system, ()):
        known = " or ".join(f"{name} on {' or '.join(kinds)}" for name, kinds in PLATFORMS.items())
        return f"this machine is {system} on {processor}; expected {known}, for which torch 2.13.0 is built"
    if system == "Darwin" and int(platform.mac_ver()[0].split(".")[0]) < OLDEST_MACOS:
        return f"macOS is {platform.mac_ver()[0]}; expected {OLDEST_MACOS} or newer, for which netCDF4 is built"
    return None


if __name__ == "__main__":
    sys.exit(problem() and f"error: {problem()}")
