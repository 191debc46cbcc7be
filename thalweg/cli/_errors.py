"""What the user did that cannot be done, in at most five lines, and the exit code that goes with it."""

import difflib
from collections.abc import Iterable
from enum import IntEnum

MOST_LINES = 5


class ExitCode(IntEnum):
    """How the process ends."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


class UsageError(Exception):
    """A mistake in what was asked for; nothing has been computed and nothing written."""

    def __init__(self, message: str):
        super().__init__(at_most_five_lines(message))


def at_most_five_lines(message: str) -> str:
    """The first lines of a message; a longer one is cut and says so."""
    lines = [line.rstrip() for line in message.strip().splitlines()]
    return "\n".join(lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], "… (cut; --debug shows all)"])


def nearest(word: str, choices: Iterable[str]) -> str:
    """Which of the right names was meant, and which there are, as sentences."""
    choices = list(choices)
    folded = {choice.casefold(): choice for choice in reversed(choices)}
    near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.5)
    hint = f"Did you mean `{folded[near[0]]}`? " if near else ""
    listed = ", ".join(choices[:16]) + (", …" if len(choices) > 16 else "")
    return f"{hint}There is: {listed}." if choices else f"{hint}There is none."
