"""The checks of axe-core (https://github.com/dequelabs/axe-core) in a browser, where `make test` could install it."""

import sys
from pathlib import Path

import pytest

AXE = Path(sys.prefix) / "axe/node_modules/axe-core/axe.min.js"


def faults(browser) -> list[str]:
    """Serious and critical faults of the page that a browser shows: rule, and the first place."""
    if not AXE.is_file():
        pytest.skip(f"no {AXE}; `make test` installs it where npm and its registry can be reached")
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    found = browser.execute_async_script(
        "const done = arguments[0]; axe.run().then(result => done(result.violations));"
    )
    return [
        f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
