"""The one exception that reaches a user as a single line instead of a traceback."""


class UserError(Exception):
    """Bad input: the message names the setting or file, its value, and what was expected."""
