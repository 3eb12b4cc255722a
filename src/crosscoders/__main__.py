"""`python -m crosscoders ROOM.STAGE` runs a stage, and an interruption ends it with one line, also while it still imports."""

import runpy
import signal
import sys


def main() -> None:
    """Run the stage that the first argument names, as `analysis.evaluate`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    name = sys.argv.pop(1)
    try:
        runpy.run_module(f"crosscoders.{name}", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
