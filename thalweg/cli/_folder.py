"""A run folder: what is written where, and when an existing folder may be used.

`problem.toml` and the user's own files are copied in before the run begins, and `run.json` says how far it came; so a
folder that was left half-written, by whatever, can be resumed. No file is replaced before its successor is whole.
"""

import dataclasses
import hashlib
import json
import math
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import thalweg
from thalweg._errors import CheckpointError
from thalweg.cli._document import Document
from thalweg.cli._errors import UsageError
from thalweg.io._atomic import ASIDE, replacing

PROBLEM, RECORD, CHECKPOINT = "problem.toml", "run.json", "checkpoint"
# Files of the user's that are larger stay where they are; their digest is kept.
_LARGEST_COPY = 16 * 2**20
# What may change between a run and its resumption: how far it goes, and how it is looked at.
_MAY_CHANGE = {"run": {"num_steps", "final_time", "checkpoint_seconds"}}


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of one run. `resumes` says whether something of it is there already."""

    path: Path
    resumes: bool

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoints are."""
        return self.path / CHECKPOINT

    def read_record(self) -> dict[str, Any]:
        """What `run.json` says, empty if there is none."""
        try:
            record = json.loads((self.path / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def write_record(self, record: dict[str, Any]) -> None:
        """Replace `run.json`."""
        self._write(RECORD, (json.dumps(plain(record), indent=2, allow_nan=False) + "\n").encode())

    def begin(self, document: Document, files: dict[str, Path], record: dict[str, Any]) -> None:
        """Make the folder, and copy the problem and the user's files into it.

        **Raises:** `UsageError` if the folder cannot be written, before anything has been computed.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write(PROBLEM, document.text.encode())
            for reference, source in files.items():
                copy = self.path / reference
                inside = not Path(reference).is_absolute() and ".." not in Path(reference).parts
                if inside and source.stat().st_size <= _LARGEST_COPY and copy.resolve() != source.resolve():
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, copy)
            self.write_record(record)
        except (OSError, CheckpointError) as error:
            reason = str(error) if isinstance(error, CheckpointError) else (error.strerror or str(error))
            raise UsageError(
                f"The run folder {self.path} cannot be written: {reason}\nChoose another one with --out DIR."
            ) from error

    def _write(self, name: str, content: bytes) -> None:
        with replacing(self.path / name) as aside:
            aside.write_bytes(content)


def digests(files: dict[str, Path]) -> dict[str, str]:
    """The SHA-256 of each file."""
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def plain(value: Any) -> Any:
    """Data that JSON can hold: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def choose_folder(document: Document, out: Path | None, resume: bool) -> RunFolder:
    """The folder for a run of this problem; nothing is made yet.

    **Raises:** `UsageError` if the folder holds something already and is not to be resumed, or something else than this
    run.
    """
    if out is None:
        out = _numbered(document.stem, resume)
    if out.exists() and not out.is_dir():
        raise UsageError(f"The run folder {out} is a file. Choose another one with --out DIR.")
    # A file that was being written when the process was killed is not yet a run.
    if not out.is_dir() or all(entry.name.endswith(ASIDE) for entry in out.iterdir()):
        return RunFolder(out, resumes=False)
    if not resume:
        raise UsageError(
            f"The run folder {out} is not empty.\n"
            "Choose another one with --out DIR, or go on with the run in it: --resume."
        )
    _require_same_problem(document, out)
    return RunFolder(out, resumes=True)


def _numbered(stem: str, resume: bool) -> Path:
    """The next free `runs/<stem>-<n>`, or the newest one that is there."""
    base = Path("runs")
    numbers = [
        int(entry.name.removeprefix(f"{stem}-"))
        for entry in (base.iterdir() if base.is_dir() else ())
        if entry.name.startswith(f"{stem}-") and entry.name.removeprefix(f"{stem}-").isdigit()
    ]
    newest = max(numbers, default=0)
    if resume and newest == 0:
        raise UsageError(f"There is no run folder {base / stem}-<n> to resume. Start without --resume.")
    return base / f"{stem}-{newest if resume else newest + 1}"


def _require_same_problem(document: Document, out: Path) -> None:
    stored = out / PROBLEM
    if not stored.is_file():
        raise UsageError(
            f"The folder {out} is not empty and holds no run: it has no {PROBLEM}. Choose another --out DIR."
        )
    try:
        before = tomllib.loads(stored.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{stored} is damaged: {error}. Nothing was changed; choose another --out DIR.") from None
    for table in sorted((set(before) | set(document.tables)) - {"tolerance", "title"}):
        free = _MAY_CHANGE.get(table, set())
        there, here = (
            {key: value for key, value in source.get(table, {}).items() if key not in free}
            for source in (before, document.tables)
        )
        if there != here:
            changed = sorted(key for key in set(there) | set(here) if there.get(key) != here.get(key))
            raise UsageError(
                f"The run in {out} is of another problem: [{table}] differs in {', '.join(changed)}.\n"
                "Only the length of a run may change when it is resumed. Choose another --out DIR."
            )


def require_same_inputs(folder: RunFolder, files: dict[str, Path]) -> None:
    """Raise `UsageError` if a file of the user's is not what it was when the run in the folder began."""
    known = folder.read_record().get("inputs") or {}
    for reference, digest in digests(files).items():
        if known.get(reference, digest) != digest:
            raise UsageError(
                f"{reference} has changed since the run in {folder.path} began; a run is resumed as it was.\n"
                f"Undo the change (a copy is kept in {folder.path}), or start anew with another --out DIR."
            )


def neighbours(folder: Path) -> dict[str, Path]:
    """Python files of the user's that have been imported from a folder as a script beside them would, by their path
    relative to it.
    """
    root = folder.resolve()
    # An environment or thalweg itself may lie below the folder, and a project beside it may be installed for editing.
    others = [Path(thalweg.__file__).resolve().parent, *(Path(p).resolve() for p in (sys.prefix, sys.base_prefix))]
    found = {}
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/").resolve()
        as_script = [root.joinpath(*name.split(".")).with_suffix(".py"), root.joinpath(*name.split("."), "__init__.py")]
        if file in as_script and not any(file.is_relative_to(other) for other in others):
            found[str(file.relative_to(root))] = file
    return found
