"""The process dies for real: SIGKILL and Ctrl-C at moments that nobody chose."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import resumable

import thalweg as tw

SCRIPT = Path(resumable.__file__)
ROOT = SCRIPT.parents[2]


def start(directory: Path, *options: str) -> subprocess.Popen[str]:
    """The script in a process of its own, which begins as a user's does."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), str(directory), *options]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def stores(directory: Path) -> int:
    """How many segments the runs have written so far."""
    return len(list(directory.glob("*/segment-*.npz")))


def stop_after(process: subprocess.Popen[str], directory: Path, more: int, delay: float, how: signal.Signals) -> str:
    """Send the signal `delay` seconds after `more` segments have come; what the process said."""
    before, limit = stores(directory), time.monotonic() + 120
    while stores(directory) < before + more and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(how)
    return process.communicate(timeout=120)[0]


def test_runs_killed_at_random_moments_end_as_if_they_had_never_stopped(tmp_path: Path):
    moments = random.Random(2)
    # The particles take 67 segments, the grid 51: two kills come among the former, the third among the latter.
    for more in (10, 25, 45):
        process = start(tmp_path)
        said = stop_after(process, tmp_path, more, moments.uniform(0, 0.03), signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, said
    finished = start(tmp_path, "--finish").communicate(timeout=240)[0]
    assert finished.strip() == "same"


def test_control_c_raises_with_the_path_and_the_run_can_be_resumed(tmp_path: Path):
    process = start(tmp_path)
    said = stop_after(process, tmp_path, 5, 0.0, signal.SIGINT)
    assert process.returncode == 130, said
    path = tw.load(tmp_path / "interrupted.npz")
    assert path.result == tw.RESULTS.interrupted
    # An interrupt between two pieces leaves the state that can be resumed a little ahead of the last save.
    assert float(path.times[-1]) <= float(path.final.time)
    assert 0 < int(path.final.num_steps) < resumable.SCRIPT["particles"]["num_steps"]
    # The checkpoint stands where the path ends: one more step from it is one more step of the path.
    found = resumable.eager(tmp_path / "particles")
    on = resumable.run("particles", num_steps=int(path.final.num_steps) + 1, checkpoint=found)
    assert int(on.final.num_steps) == int(path.final.num_steps) + 1
    steps = {float(time): index for index, time in enumerate(on.times)}
    for index, moment in enumerate(path.times[:-1]):
        ours = jax.tree.leaves(path.state_at(index)), jax.tree.leaves(on.state_at(steps[float(moment)]))
        assert resumable.differences(*ours) == []
