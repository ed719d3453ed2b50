"""Exceptions whose message tells the user what to do."""

from collections.abc import Sequence

INTERRUPTED = 130
"""Exit status of a command that was stopped."""

_MOST_CHARACTERS = 300  # of somebody else's message


class CaptionerError(Exception):
    """A problem the user can fix: the message says what was given, what is allowed and what to do.

    Everything else that is raised is a bug and keeps its traceback.
    """


class UsageError(CaptionerError):
    """Arguments or settings that cannot be used, or not together."""


def one_line(error: BaseException) -> str:
    """The message of somebody else's error, in one line of bounded length; its type if it has none."""
    return " ".join(str(error).split())[:_MOST_CHARACTERS] or type(error).__name__


class ModelFolderError(CaptionerError):
    """A model folder that cannot be loaded or saved."""


class Stopped(CaptionerError):  # noqa: N818 (not an error)
    """Work that was asked to stop and has been saved."""


class ImageError(CaptionerError):
    """A file that cannot be read as a picture: `file` is its name, `reason` one line that says why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        """Let worker processes return it."""
        return ImageError, (self.file, self.reason)


def abbreviate(names: Sequence[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def reject_string(value: object, name: str) -> None:
    """Refuse a single text where a list of them is expected: Python would take its letters for the items.

    Raises:
        TypeError: `value`, the argument called `name`, is a string.
    """
    if isinstance(value, str | bytes):
        raise TypeError(f"{name} must be a list, not the single text {value!r:.60}; put it in brackets")
