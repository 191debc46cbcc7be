"""Writing aside: a file is there whole or not at all, whatever happens in between."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from thalweg._errors import CheckpointError

ASIDE = ".aside"


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a new name in the same directory to write to; when the block ends well, it takes the place of `file`.

    The content reaches the disk before the name does, so a loss of power leaves the old file or the new one. If the
    block fails, the old file is untouched and nothing is left behind.

    **Raises:** [`thalweg.CheckpointError`][] if the system refuses to write.
    """
    # Through a symbolic link: the file that it names is replaced, not the link.
    file = Path(os.path.realpath(file))
    aside = file.with_name(f".{file.name}.{secrets.token_hex(6)}{ASIDE}")
    try:
        try:
            if file.is_dir():
                raise IsADirectoryError("it is a directory")
            yield aside
            with open(aside, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(aside, file)
            _sync_directory(file.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CheckpointError(
            f"`{file}` could not be written: {error.strerror or error}.\n"
            "Nothing was overwritten. Give a file in a directory that exists and can be written to, with space left."
        ) from error


def _sync_directory(directory: Path) -> None:
    """Make the new name itself reach the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
