"""The one exception that reaches a user as a single line instead of a traceback, and what errors share."""

import math
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input: the message names the setting or file, its value, and what was expected."""


def shortened(line: str, longest: int = 200) -> str:
    """A line without its middle, where it is longer than an error should be.

    Parameters
    ----------
    line : str
    longest : int
        Characters.

    Returns
    -------
    str
    """
    if len(line) <= longest:
        return line
    end = longest // 2 - 2
    return f"{line[: longest - end - 3]} … {line[-end:]}"


def check_divergence(step: int, **figures: float) -> None:
    """Refuse figures of a training step that are not finite.

    Parameters
    ----------
    step : int
        Number of the step, from 0.
    **figures : float
        What was computed at that step, by name.

    Raises
    ------
    FloatingPointError
        Names the step and the first figure that is not finite.
    """
    for name, value in figures.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"the {name.replace('_', ' ')} is {value} at step {step}")


@contextmanager
def explain_divergence(section: str) -> Iterator[None]:
    """Turn what :func:`check_divergence` raises into the line that a user sees.

    Parameters
    ----------
    section : str
        The section of the study that holds the learning rate, as `models.chat`.

    Raises
    ------
    UserError
        A figure of the training is not finite.
    """
    try:
        yield
    except FloatingPointError as error:
        raise UserError(f"{section}: {error}; expected a lower learning_rate") from None
