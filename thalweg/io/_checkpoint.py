"""A run on disk, so that a killed run goes on as if nothing had happened.

The directory holds a manifest (the flow state, and the list of segments) and segments (the saves of the path, each
written once). A store writes the new segment first and the manifest last, each whole or not at all: killed in between,
the old manifest still names the old segments, and what it does not name is swept away at the next start. So the state
and the saves on disk always belong together, and a store costs the new saves, not the whole path.

A manifest may hold two states. When `final_time` begins to shorten steps, the state before the first such step stays
beside the newest one: a run to the same `final_time` goes on from the newest, a run to a later one from that before.
"""

import contextlib
import math
import os
import re
import time
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg._errors import CheckpointError
from thalweg.io._atomic import ASIDE
from thalweg.io._sealed import read_sealed, write_sealed

try:
    import fcntl
except ImportError:  # not on Windows: two runs at once are then not noticed
    fcntl = None

_MANIFEST = "manifest.npz"
_LOCK = "lock"
_SEGMENT = re.compile(r"segment-(\d{6,})\.npz")


class Checkpoint:
    r"""Keeps a flow on disk while it runs: `tw.flow(..., checkpoint=tw.Checkpoint("run"))`.

    Called again with the same problem, the flow goes on where the last complete checkpoint was, and gives the same
    path, bit for bit (on the same machine and versions), as if it had never stopped. A finished run can be prolonged by
    more `num_steps` or a later `final_time`; steps that the old `final_time` had cut short are then taken again.

    What decides the path must be the same: the energy, geometry and scheme (their operations and constants, not only
    their names), the start, `key`, `save_every` and `measure`.

    **Arguments:** `directory`: made if it does not exist; `every_seconds`: the least time between two checkpoints, in
    seconds (one is always written at the start, at the end, and at Ctrl-C); `resume`: `False` refuses to go on with,
    and never overwrites, a run that is already there.

    **Raises:** `ValueError` for a wrong argument; when the flow starts, [`thalweg.CheckpointError`][] if the directory
    cannot be written to, is in use by another run, is damaged, or belongs to another problem.
    """

    def __init__(self, directory: str | os.PathLike[str], *, every_seconds: float | int = 30.0, resume: bool = True):
        if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
            raise ValueError(f"`directory` of a `Checkpoint` must be the name of a directory; got {directory!r}.")
        if not isinstance(every_seconds, int | float) or not 0 <= every_seconds < math.inf:
            raise ValueError(f"`every_seconds` must be a finite number, at least 0; got {every_seconds!r}.")
        self.directory = FilePath(os.fspath(directory))
        self.every_seconds = float(every_seconds)
        self.resume = bool(resume)
        self._forget()
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.directory)!r}, every_seconds={self.every_seconds:g}, resume={self.resume})"

    def _forget(self) -> None:
        self._segments: list[dict[str, Any]] = []
        self._variants: list[dict[str, Any]] = []
        self._pending: list[Any] = []
        self._next_number = 0
        self._written = -math.inf

    def restore(
        self, fingerprint: str, flow_state: Any, saves: Any, until: float | None
    ) -> tuple[Any, list[Any], float | None] | None:
        """Open the directory and return what it holds, or `None` if it holds nothing.

        **Arguments:** `fingerprint`: of the problem; `flow_state`, `saves`: trees of the shapes and dtypes that are
        expected (`saves` without the leading axis); `until`: the run's `final_time`.

        **Returns:** the flow state, the list of saves, and the `until` with which they were stored (see
        [`thalweg.Checkpoint`][]), which is the one asked for or `None`.
        """
        self._open()
        try:
            self._forget()
            found = self._read(fingerprint, flow_state, saves, until)
            self._sweep(keep={entry["name"] for entry in self._segments})
            return found
        except BaseException:
            self.close()
            raise

    def store(
        self, fingerprint: str, flow_state: Any, pieces: list[Any], *, force: bool, until: float | None = None
    ) -> None:
        """Write the flow state and all saves that are not yet written, if `force` or `every_seconds` have passed."""
        self._pending += pieces
        if not force and time.monotonic() - self._written < self.every_seconds:
            return
        segments = list(self._segments)
        if self._pending:
            leaves = [_leaves(piece) for piece in self._pending]
            joined = [np.concatenate(parts) for parts in zip(*leaves, strict=True)]
            # A number is never used twice, so no segment that a manifest names is ever written to.
            name = f"segment-{self._next_number:06d}.npz"
            self._next_number += 1
            digest = write_sealed(self.directory / name, {"kind": "segment", "fingerprint": fingerprint}, joined)
            segments.append({"name": name, "sha256": digest})
        shared = [] if until is None else [v for v in self._variants if v["until"] is None]
        newest = {"until": until, "num_segments": len(segments), "leaves": _leaves(flow_state)}
        variants = [*shared, newest]
        self._write_manifest(fingerprint, segments, variants)
        self._segments, self._variants, self._pending = segments, variants, []
        self._written = time.monotonic()

    def close(self) -> None:
        """Let other runs use the directory; called by the flow when it ends."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = None

    def _write_manifest(self, fingerprint: str, segments: list[Any], variants: list[Any]) -> None:
        header = {
            "kind": "checkpoint",
            "fingerprint": fingerprint,
            "jax": jax.__version__,
            "segments": segments,
            "variants": [{"until": v["until"], "num_segments": v["num_segments"]} for v in variants],
        }
        arrays = [leaf for variant in variants for leaf in variant["leaves"]]
        write_sealed(self.directory / _MANIFEST, header, arrays)

    def _open(self) -> None:
        """Make the directory, see that it can be written to, and keep other runs out of it."""
        if self._lock is not None:
            raise CheckpointError(f"{self!r} is in use by another flow; give each flow a directory of its own.")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint directory `{self.directory}` cannot be written to: {error.strerror or error}.\n"
                "Nothing was run. Give a directory that can be made and written to."
            ) from error
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise CheckpointError(
                    f"The checkpoint directory `{self.directory}` is in use by another run.\n"
                    "Wait for it to end, or give each run a directory of its own."
                ) from error
            except OSError:
                pass  # a file system without locks: two runs at once are then not noticed
        self._lock = lock

    def _read(
        self, fingerprint: str, flow_state: Any, saves: Any, until: float | None
    ) -> tuple[Any, list[Any], float | None] | None:
        manifest = self.directory / _MANIFEST
        numbers = [int(match[1]) for name in self._names() if (match := _SEGMENT.fullmatch(name))]
        self._next_number = max(numbers, default=-1) + 1
        if not manifest.exists():
            if len(numbers) > 1:
                raise CheckpointError(
                    f"`{self.directory}` holds {len(numbers)} segments of a checkpoint without their `{_MANIFEST}`.\n"
                    "Put it back, or give another directory; nothing was changed."
                )
            return None
        if not self.resume:
            raise CheckpointError(
                f"`{self.directory}` already holds a checkpoint, and `resume=False` never overwrites one.\n"
                "Use `resume=True` to go on with it, another directory, or delete this one first."
            )
        header, arrays, _ = read_sealed(manifest, "checkpoint")
        if header["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"The checkpoint in `{self.directory}` belongs to another problem; nothing was changed.\n"
                "Energy, geometry, scheme, start, key, `save_every` and `measure` must be those that it was begun with"
                f"{_versions(header)}.\nGive them back, or give another directory to start again."
            )
        count = len(jax.tree.leaves(flow_state))
        variants = [
            {**entry, "leaves": arrays[i * count : (i + 1) * count]} for i, entry in enumerate(header["variants"])
        ]
        if len(arrays) != count * len(variants):
            raise self._misfit(f"{len(arrays)} arrays of state where {count * len(variants)} are expected")
        # The newest state if it may be used, else the one before `final_time` made itself felt.
        chosen = variants[-1] if variants[-1]["until"] in (None, until) else variants[0]
        kept = [v for v in variants if v is chosen or v["until"] is None]
        self._variants = kept
        self._segments = header["segments"][: chosen["num_segments"]]
        pieces = [self._read_segment(entry, saves) for entry in self._segments]
        return self._shaped_like(flow_state, chosen["leaves"]), pieces, chosen["until"]

    def _read_segment(self, entry: dict[str, Any], saves: Any) -> Any:
        _, arrays, digest = read_sealed(self.directory / entry["name"], "segment")
        if digest != entry["sha256"]:
            raise self._misfit(f"`{entry['name']}` is not the segment that was written")
        expected, structure = jax.tree.flatten(saves)
        if len(arrays) != len(expected):
            raise self._misfit(f"`{entry['name']}` holds {len(arrays)} arrays where {len(expected)} are expected")
        for array, leaf in zip(arrays, expected, strict=True):
            if array.shape[1:] != leaf.shape or array.dtype != leaf.dtype:
                raise self._misfit(f"`{entry['name']}` holds {array.dtype}{array.shape}, not {leaf.dtype}{leaf.shape}")
        return jax.tree.unflatten(structure, arrays)

    def _shaped_like(self, flow_state: Any, arrays: list[np.ndarray]) -> Any:
        """The stored leaves in the place of the given ones; what is not an array (a function) is the given one."""
        leaves, structure = jax.tree.flatten(flow_state)
        return jax.tree.unflatten(structure, [self._leaf(a, like) for a, like in zip(arrays, leaves, strict=True)])

    def _leaf(self, array: np.ndarray, like: Any) -> Any:
        expected = _to_numpy(like)
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise self._misfit(
                f"an array of the state is {array.dtype}{array.shape}, not {expected.dtype}{expected.shape}"
            )
        if not isinstance(like, jax.Array):
            return like
        value = jnp.asarray(array)
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(value, impl=jax.random.key_impl(like))
        return jax.device_put(value, like.sharding) if len(like.sharding.device_set) > 1 else value

    def _misfit(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"The checkpoint in `{self.directory}` does not fit together: {what}.\n"
            "Nothing was changed. Put its files back as they were, or give another directory to start again."
        )

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())

    def _sweep(self, keep: set[str]) -> None:
        """Remove what a kill left behind: files begun, and segments that no manifest names."""
        named = keep
        if (self.directory / _MANIFEST).exists():
            header, _, _ = read_sealed(self.directory / _MANIFEST, "checkpoint")
            named = keep | {entry["name"] for entry in header["segments"]}
        for name in self._names():
            begun = name.startswith(".") and name.endswith(ASIDE)
            if begun or (_SEGMENT.fullmatch(name) and name not in named):
                with contextlib.suppress(OSError):
                    (self.directory / name).unlink()


def _leaves(tree: Any) -> list[np.ndarray]:
    return [_to_numpy(leaf) for leaf in jax.tree.leaves(tree)]


def _to_numpy(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array: the data of a random key, and an empty array for what is no array at all."""
    if not isinstance(leaf, jax.Array | np.ndarray):
        return np.zeros(0, np.uint8)
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def _versions(header: dict[str, Any]) -> str:
    """A remark if another version wrote the checkpoint, since the traced step may differ from version to version."""
    written, here = header.get("jax"), jax.__version__
    return (
        "" if written == here else f"\n(it was written with jax {written}, this is {here}: that alone can be the cause)"
    )
