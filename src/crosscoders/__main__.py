"""`python -m crosscoders ROOM.STAGE` runs a stage, and an interruption ends it with one line, also while it still imports."""

import os
import runpy
import signal
import sys
from pathlib import Path

HERE = Path(__file__).parent


def end_at_once(name: str) -> None:
    """Let an interruption end this process with its line, until the stage itself begins (`crosscoders.stage.run`).

    A KeyboardInterrupt would not do: libraries call Python from C++ while they are imported, and one that is raised there aborts.
    """
    line = f"{name}: interrupted; the same command continues\n".encode()

    def end(*_) -> None:
        os.write(2, line)
        os._exit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as of Ctrl-C in the background of a shell
            signal.signal(number, end)


def main() -> None:
    """Run the stage that the first argument names, as `analysis.evaluate`."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    end_at_once(name)
    try:
        known = sorted(path.relative_to(HERE) for path in HERE.glob("*/*.py") if not path.stem.startswith("_"))
        if name not in [f"{path.parent.name}.{path.stem}" for path in known]:
            sys.exit(f"error: {name!r} is no stage; expected a room and a stage, as analysis.evaluate")
        runpy.run_module(f"crosscoders.{name}", run_name="__main__", alter_sys=True)
    except (KeyboardInterrupt, RuntimeError) as error:
        # Python 3.11 wraps what interrupts the making of a class.
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        print(f"{name}: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
