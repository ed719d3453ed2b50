"""What a command tells the user in one line, as against a bug, which keeps its traceback."""


class CaptionerError(Exception):
    """Something the user can mend; the message says what was given, what is wrong and what to do."""


class UsageError(CaptionerError):
    """Arguments of a command that make no sense together."""
