"""The one exception for mistakes a user can repair; everything else is a fault of ours."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user's: what happened, why, and what to do.

    `str()` is the whole message, "what: why. fix." The command line prints it without a traceback and exits
    with code 2 (`exit_code`); any other exception exits with 1.
    """

    exit_code = 2

    def __init__(self, what: str, why: str, fix: str) -> None:
        self.what = what.strip().rstrip(":.")
        self.why = why.rstrip().rstrip(".")
        self.fix = fix.strip()
        super().__init__(what, why, fix)

    def __str__(self) -> str:
        # Several reasons are a list, one to a line.
        several = "\n" in self.why
        message = (
            f"{self.what}:\n{self.why}\n{self.fix}" if several else f"{self.what}: {self.why}. {self.fix}"
        )
        return message if message.endswith((".", "!", "?")) else message + "."
