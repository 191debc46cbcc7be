"""The directory of a checkpoint holds a state and the saves that belong to it, whenever the process dies."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resumable import eager, run

import thalweg as tw
from thalweg.io import _atomic, _checkpoint, _sealed

FINGERPRINT = "f" * 64


def model(x: Any) -> Any:
    return x


def state_at(step: int) -> dict[str, Any]:
    """A flow state with every kind of leaf: arrays of two dtypes, a random key, and a function."""
    return {
        "x": jnp.asarray([0.1 * step, -step], jnp.float32),
        "key": jax.random.fold_in(jax.random.key(1), step),
        "steps": jnp.asarray(step),
        "model": model,
        "nothing": None,
    }


def saves_at(step: int) -> tuple[Any, ...]:
    return np.asarray([0.5 * step]), {"x": np.asarray([[step, 1.0]])}, {}, {"m": np.asarray([step])}


LIKE = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), saves_at(0))


def restore(keeper: tw.Checkpoint, until: float | None = None) -> tuple[int, list[int], float | None] | None:
    """What a checkpoint holds: the step of the state, and those of the saves; checked to be what was stored."""
    found = keeper.restore(FINGERPRINT, state_at(0), LIKE, until)
    if found is None:
        return None
    state, pieces, stored_until = found
    step = int(state["steps"])
    expected = state_at(step)
    assert state["x"].dtype == expected["x"].dtype
    assert np.array_equal(state["x"], expected["x"])
    assert np.array_equal(jax.random.key_data(state["key"]), jax.random.key_data(expected["key"]))
    assert state["model"] is model
    saves = []
    for times, states, _, measurements in pieces:
        for i, saved in enumerate(measurements["m"]):
            assert times[i] == 0.5 * saved
            assert states["x"][i, 0] == saved
            saves.append(int(saved))
    return step, saves, stored_until


def fake_run(directory: Path, end: int, cut_at: int | None = None) -> None:
    """Steps up to `end`, each saved and stored; from step `cut_at` on, `final_time` shows."""
    keeper = eager(directory)
    try:
        _fake_run(keeper, end, cut_at)
    finally:
        keeper.close()  # the system does this for a process that dies


def _fake_run(keeper: tw.Checkpoint, end: int, cut_at: int | None) -> None:
    until = None if cut_at is None else float(end)
    found = restore(keeper, until)
    step = 0
    if found is None:
        keeper.store(FINGERPRINT, state_at(0), [saves_at(0)], force=True)
    else:
        step, saves, _ = found
        assert saves == list(range(step + 1)), "the saves are those up to the state, each once"
    while step < end:
        step += 1
        shows = until if cut_at is not None and step > cut_at else None
        keeper.store(FINGERPRINT, state_at(step), [saves_at(step)], force=False, until=shows)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def die_at(monkeypatch: pytest.MonkeyPatch, point: int | None, after: bool = False) -> list[str]:
    """Count the calls by which a checkpoint reaches the disk; nothing happens after the one numbered `point`, and not
    even that unless `after`.
    """
    calls: list[str] = []

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if point is not None and len(calls) > point:
                raise Killed  # after a kill nothing is tidied up
            calls.append(name)
            if len(calls) - 1 == point:
                if name == "write":
                    args[0].write(b"torn")
                elif after:
                    function(*args, **options)
                raise Killed
            return function(*args, **options)

        return call

    monkeypatch.setattr(_sealed.np.lib.format, "write_array", counted("write", np.lib.format.write_array))
    monkeypatch.setattr(_atomic.os, "fsync", counted("sync", os.fsync))
    monkeypatch.setattr(_atomic.os, "replace", counted("replace", os.replace))
    monkeypatch.setattr(Path, "unlink", counted("unlink", Path.unlink))
    return calls


def test_a_kill_at_any_write_leaves_a_state_and_its_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        calls = die_at(patch, None)
        fake_run(tmp_path / "count", 3, cut_at=1)
    assert calls.count("replace") == 8  # a segment and a manifest, four times
    monkeypatch.setattr(_atomic.os, "fsync", lambda handle: None)  # what follows asks for the order, not for the disk
    moments = [
        (point, after)
        for point, name in enumerate(calls)
        for after in ((False, True) if name == "replace" else (False,))
    ]
    for point, after in moments:
        directory = tmp_path / f"{point}{after}"
        with monkeypatch.context() as patch:
            die_at(patch, point, after)
            with pytest.raises(Killed):
                fake_run(directory, 3, cut_at=1)
        fake_run(directory, 3, cut_at=1)
        keeper = eager(directory)
        assert restore(keeper, 3.0) == (3, [0, 1, 2, 3], 3.0)
        keeper.close()
        assert [name for name in os.listdir(directory) if name.endswith(_atomic.ASIDE)] == []


def test_a_kill_during_the_sweep_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_run(tmp_path, 3)
    for name in ("segment-000007.npz", "segment-000009.npz", f".manifest.npz.1{_atomic.ASIDE}"):
        (tmp_path / name).write_bytes(b"left by a kill")
    for point in range(2):
        with monkeypatch.context() as patch:
            die_at(patch, point)
            with pytest.raises(Killed):
                restore(eager(tmp_path))
    keeper = eager(tmp_path)
    assert restore(keeper) == (3, [0, 1, 2, 3], None)
    assert sorted(os.listdir(tmp_path)) == ["lock", "manifest.npz", *(f"segment-{i:06d}.npz" for i in range(4))]
    keeper.store(FINGERPRINT, state_at(4), [saves_at(4)], force=True)
    keeper.close()
    assert restore(eager(tmp_path)) == (4, [0, 1, 2, 3, 4], None)


def test_another_final_time_goes_on_from_before_the_first_cut_step(tmp_path: Path):
    fake_run(tmp_path, 6, cut_at=4)
    newest, before = (6, [0, 1, 2, 3, 4, 5, 6], 6.0), (4, [0, 1, 2, 3, 4], None)
    # Looking from another end loses nothing for the first.
    for until, expected in ((6.0, newest), (9.0, before), (None, before), (6.0, newest)):
        keeper = eager(tmp_path)
        assert restore(keeper, until) == expected
        keeper.close()
    # Prolonged from there, the saves of the cut steps are gone and nothing else; twice, as the numbers then have gaps.
    for end in (9, 20):
        fake_run(tmp_path, end, cut_at=end - 1)
        keeper = eager(tmp_path)
        assert restore(keeper, float(end)) == (end, list(range(end + 1)), float(end))
        keeper.close()


def test_a_store_writes_the_new_saves_only(tmp_path: Path):
    fake_run(tmp_path, 3)
    before = {file.name: (file.stat().st_ino, file.read_bytes()) for file in tmp_path.glob("segment-*")}
    fake_run(tmp_path, 5)
    after = {file.name: (file.stat().st_ino, file.read_bytes()) for file in tmp_path.glob("segment-*")}
    assert len(after) == 6
    assert {name: after[name] for name in before} == before


def test_nothing_is_written_before_it_is_time(tmp_path: Path):
    keeper = tw.Checkpoint(tmp_path, every_seconds=1000)
    restore(keeper)
    keeper.store(FINGERPRINT, state_at(0), [saves_at(0)], force=True)
    written = (tmp_path / "manifest.npz").read_bytes()
    for step in (1, 2):
        keeper.store(FINGERPRINT, state_at(step), [saves_at(step)], force=False)
    assert (tmp_path / "manifest.npz").read_bytes() == written
    keeper.store(FINGERPRINT, state_at(3), [], force=True)
    keeper.close()
    assert restore(eager(tmp_path)) == (3, [0, 1, 2], None)
    assert len(list(tmp_path.glob("segment-*"))) == 2, "the saves that waited are one segment"


def test_it_is_time_when_the_seconds_have_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(_checkpoint.time, "monotonic", lambda: now[0])
    keeper = tw.Checkpoint(tmp_path, every_seconds=30)
    restore(keeper)
    keeper.store(FINGERPRINT, state_at(0), [saves_at(0)], force=True)
    for later, stored in ((129.0, 0), (131.0, 2), (160.0, 2), (162.0, 4)):
        now[0] = later
        step = {129.0: 1, 131.0: 2, 160.0: 3, 162.0: 4}[later]
        keeper.store(FINGERPRINT, state_at(step), [saves_at(step)], force=False)
        arrays = _sealed.read_sealed(tmp_path / "manifest.npz", "checkpoint")[1]
        assert int(arrays[2]) == stored, "the leaf `steps` of the stored state"
    keeper.close()


@pytest.mark.parametrize("which", ["segment", "manifest"])
def test_a_store_that_fails_keeps_the_saves_for_the_next(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keeper = eager(tmp_path)
    restore(keeper)
    keeper.store(FINGERPRINT, state_at(0), [saves_at(0)], force=True)

    replace = os.replace

    def full(aside: Any, file: Any) -> None:
        if which in Path(file).name:
            raise OSError(28, "No space left on device")
        replace(aside, file)

    with monkeypatch.context() as patch:
        patch.setattr(_atomic.os, "replace", full)
        with pytest.raises(tw.CheckpointError, match="No space left on device.*\n.*Nothing was overwritten"):
            keeper.store(FINGERPRINT, state_at(1), [saves_at(1)], force=True)
    assert [name for name in os.listdir(tmp_path) if name.endswith(_atomic.ASIDE)] == []
    keeper.store(FINGERPRINT, state_at(2), [saves_at(2)], force=True)
    keeper.close()
    assert restore(eager(tmp_path)) == (2, [0, 1, 2], None)


@pytest.mark.parametrize("name", ["manifest.npz", "segment-000001.npz"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "exchanged"])
def test_a_damaged_file_is_told_and_nothing_is_lost(name: str, damage: str, tmp_path: Path):
    fake_run(tmp_path, 2)
    file = tmp_path / name
    content = file.read_bytes()
    other = (tmp_path / "segment-000000.npz").read_bytes()  # whole in itself, but not what belongs here
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    file.write_bytes({"flipped": bytes(flipped), "cut": content[:-7], "emptied": b"", "exchanged": other}[damage])
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(tw.CheckpointError) as raised:
        restore(eager(tmp_path))
    assert name in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 5
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    file.write_bytes(content)
    assert restore(eager(tmp_path)) == (2, [0, 1, 2], None)


def test_segments_without_their_manifest_are_not_swept_away(tmp_path: Path):
    fake_run(tmp_path, 2)
    manifest = (tmp_path / "manifest.npz").read_bytes()
    (tmp_path / "manifest.npz").unlink()
    with pytest.raises(tw.CheckpointError, match="3 segments of a checkpoint without their `manifest.npz`"):
        restore(eager(tmp_path))
    (tmp_path / "manifest.npz").write_bytes(manifest)
    assert restore(eager(tmp_path)) == (2, [0, 1, 2], None)


def test_what_others_keep_in_the_directory_is_not_touched(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "segment-1.npz").write_text("mine too")
    fake_run(tmp_path, 2)
    fake_run(tmp_path, 3)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "segment-1.npz").read_text() == "mine too"


def test_resume_false_begins_in_an_empty_directory_and_overwrites_nothing(tmp_path: Path):
    run("backtracking", num_steps=3, checkpoint=eager(tmp_path, resume=False))
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(tw.CheckpointError, match="already holds a checkpoint.*never overwrites.*\n.*another directory"):
        run("backtracking", num_steps=5, checkpoint=eager(tmp_path, resume=False))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
    assert len(run("backtracking", num_steps=5, checkpoint=eager(tmp_path))) == 3


@pytest.mark.parametrize(
    ("like", "saves", "complaint"),
    [
        ({**state_at(0), "x": jnp.zeros(3, jnp.float32)}, LIKE, r"float32\(2,\), not float32\(3,\)"),
        ({**state_at(0), "x": jnp.zeros(2)}, LIKE, r"float32\(2,\), not float64\(2,\)"),
        ({**state_at(0), "more": jnp.zeros(2)}, LIKE, "4 arrays of state where 5 are expected"),
        (state_at(0), (LIKE[0],), "holds 3 arrays where 1 are expected"),
        (state_at(0), (*LIKE[:2], {}, {"m": LIKE[0]}), r"holds int64\(1,\), not float64\(\)"),
    ],
)
def test_a_state_of_another_shape_or_dtype_is_refused(like: Any, saves: Any, complaint: str, tmp_path: Path):
    fake_run(tmp_path, 2)
    with pytest.raises(tw.CheckpointError, match=complaint):
        eager(tmp_path).restore(FINGERPRINT, like, saves, None)


def test_two_runs_at_once_do_not_share_a_directory(tmp_path: Path):
    keeper = eager(tmp_path)
    restore(keeper)
    code = f"""
import thalweg as tw
try:
    tw.Checkpoint({str(tmp_path)!r}).restore("", None, None, None)
except tw.CheckpointError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert "in use by another run" in told
    with pytest.raises(tw.CheckpointError, match="in use by another run"):
        restore(eager(tmp_path))
    with pytest.raises(tw.CheckpointError, match="in use by another flow"):
        restore(keeper)
    keeper.close()
    assert restore(keeper) is None
    keeper.close()


def test_a_flow_lets_the_directory_go_when_it_ends_in_any_way(tmp_path: Path):
    keeper = eager(tmp_path)
    options = {"num_steps": 5, "checkpoint": keeper}

    def fails(report: tw.Progress) -> None:
        raise RuntimeError("the progress bar broke")

    with pytest.raises(RuntimeError, match="progress bar"):
        run("backtracking", **options, progress=fails)
    choices = {"geometry": tw.Euclidean(), "scheme": tw.Explicit(0.1), "num_steps": 5}
    pieces = tw.iterate(lambda x: jnp.sum(x**2), jnp.ones(2), **choices, checkpoint=eager(tmp_path / "left"))
    next(pieces)
    with pytest.raises(tw.CheckpointError, match="in use"):
        restore(eager(tmp_path / "left"))
    pieces.close()
    with pytest.raises(tw.CheckpointError, match="another problem"):
        restore(eager(tmp_path / "left"))
    assert len(run("backtracking", **options)) == 3


@pytest.mark.parametrize("where", ["file/run", "file"])
def test_a_directory_that_cannot_be_made_is_told_before_anything_runs(where: str, tmp_path: Path):
    (tmp_path / "file").write_text("not a directory")
    steps = []
    with pytest.raises(tw.CheckpointError, match="cannot be written to.*\nNothing was run"):
        run("backtracking", num_steps=5, checkpoint=eager(tmp_path / where), progress=steps.append)
    assert steps == []
    assert (tmp_path / "file").read_text() == "not a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_the_right_to_write_is_told(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(tw.CheckpointError, match="cannot be written to"):
        restore(eager(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"directory": ""}, "`directory` of a `Checkpoint` must be the name of a directory"),
        ({"directory": "run", "every_seconds": -1}, "`every_seconds` must be a finite number, at least 0; got -1"),
        ({"directory": "run", "every_seconds": float("nan")}, "got nan"),
    ],
)
def test_a_wrong_argument_is_told(arguments: dict[str, Any], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        tw.Checkpoint(**arguments)
