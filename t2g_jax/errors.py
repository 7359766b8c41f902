"""The base class of every error that a user can mend, and the errors of others in a line."""

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2
"""The status of a command that a `T2GError` ended."""


class T2GError(ValueError):
    """Something the user gave us cannot be used; the message names it and says what to do.

    The command line prints it as one line and exits with status 2. Anything else that is raised is
    a defect of ours and keeps its traceback.
    """


class ConfigError(T2GError):
    """A configuration that cannot be used: says which file, which key, and what would be right."""


def reason(error: BaseException) -> str:
    """The first line of what an error says, or its kind if it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean 'x'?" if one of those known is
    near, else nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
