"""The one error that means "the user can fix this"."""

from __future__ import annotations


class UsageError(ValueError):
    """Arguments, a configuration or an input that cannot be used.

    The message names the file, key or field and what was expected. The `dso` command prints it as
    `error: ...` and exits with code 2; a traceback is shown for every other exception.
    """
