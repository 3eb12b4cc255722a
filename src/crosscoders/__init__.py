"""Crosscoders: sparse dictionaries shared by several sources, trained and judged as a reproducible study.

`load` and `from_hub` read a crosscoder, `open_study` the results of a study; `attach` puts a crosscoder on a language model.
"""

import gc
import importlib
import sys

__version__ = "0.2.0"

if sys.argv[:1] == ["-m"]:
    # A stage starts as `python -m crosscoders.<stage>`. Its imports make many objects that all stay; walking them again
    # and again is a seventh of the time it takes to start. `stage.run` turns the collector on.
    gc.disable()

_OFFERED = {"load": "loaded", "from_hub": "loaded", "open_study": "studies", "attach": "attachment"}
"""Functions of the library, and the modules of its room. They are imported when first used, since torch takes seconds."""
__all__ = ["__version__", *_OFFERED]


def __getattr__(name: str) -> object:
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.library.{_OFFERED[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
