"""The errors that thalweg raises itself; each message says what was expected, what was given, and what to do."""

from typing import Any


class UnsupportedCombination(TypeError):
    """These four choices cannot be put together; raised before anything is compiled.

    The message names the choices and what to use instead. [`thalweg.why_unsupported`][] gives the same text without
    raising.
    """


class FlowError(RuntimeError):
    """A flow stopped before it was done; `error.path` holds everything up to the last good state.

    **Attributes:** `path`: the [`thalweg.Path`][] so far; `path.result` is the reason and `path.final` can be resumed.
    """

    path: Any

    def __init__(self, message: str, path: Any = None):
        super().__init__(message)
        self.path = path


class FlowInterrupted(KeyboardInterrupt):
    """A flow was interrupted from the keyboard; `error.path` holds everything up to the last good state."""

    path: Any

    def __init__(self, message: str, path: Any = None):
        super().__init__(message)
        self.path = path


class CheckpointError(RuntimeError):
    """A checkpoint or saved path is missing, damaged, or belongs to another problem; nothing was overwritten."""


class Unavailable(AttributeError):
    """A quantity of a path could not be measured in this representation; the message says why."""
