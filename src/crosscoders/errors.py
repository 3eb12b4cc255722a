"""The one exception that reaches a user as a single line instead of a traceback."""


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
