"""Three runs that can be stopped and resumed, shared by the tests of this folder.

As a script, `resumable.py DIRECTORY` runs two of them with a checkpoint after every chunk and then waits to be killed.
With `--finish` it runs them again instead, without one, and prints `same` if everything agrees, bit for bit.
"""

import sys
import time
from pathlib import Path
from typing import Any

import jax

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np

import thalweg as tw
from thalweg import _loop

TARGET = tw.Target(lambda x: -0.25 * jnp.sum((x**2 - 1.0) ** 2), dim=2)
GRID = tw.Grid(-2.0, 2.0, 16)
WEIGHTS = np.asarray([1.0, 3.0])


def quadratic(x: Any) -> Any:
    return 0.5 * jnp.sum(WEIGHTS * x**2)


def moments(state: Any) -> dict[str, Any]:
    return {"moments": {"second": jnp.mean(state.positions**2, axis=0)}}


# Small, so that compiling is all that they cost.
RUNS: dict[str, dict[str, Any]] = {
    "particles": {
        "energy": tw.KL(TARGET),
        "initial_state": tw.Particles(jnp.asarray([[0.5, -0.2], [1.0, 0.3], [-0.7, 0.1]])),
        "geometry": tw.Wasserstein(),
        "scheme": tw.Langevin(0.01),
        "key": jax.random.key(7),
        "measure": moments,
        "save_every": 3,
    },
    "grid": {
        "energy": tw.PotentialEnergy(lambda x: jnp.sum(x**2)) + tw.Entropy(),
        "initial_state": tw.GridDensity.from_function(lambda x: jnp.exp(-jnp.sum((x - 0.5) ** 2)), GRID),
        "geometry": tw.Wasserstein(),
        "scheme": tw.Continuous(0.01),
        "save_every": 2,
    },
    "backtracking": {
        "energy": quadratic,
        "initial_state": jnp.asarray([1.0, -2.0]),
        "geometry": tw.Euclidean(),
        "scheme": tw.Explicit(tw.Backtracking(maximum=0.01)),
        "save_every": 4,
    },
}


def run(name: str, **options: Any) -> tw.Path:
    choices = {**RUNS[name], **options}
    return tw.flow(choices.pop("energy"), choices.pop("initial_state"), **choices)


def eager(directory: Path, **options: Any) -> tw.Checkpoint:
    """A checkpoint after every chunk."""
    return tw.Checkpoint(directory, every_seconds=0.0, **options)


def content(path: tw.Path) -> Any:
    """All that a path holds, less the clock."""
    return path.times, path.states, path.records, path.measurements, path.final, path.result


def differences(one: Any, other: Any) -> list[str]:
    """Where two trees differ: in structure, dtype, or any bit."""
    leaves, structure = jax.tree.flatten_with_path(one)
    others, other_structure = jax.tree.flatten(other)
    if structure != other_structure:
        return [f"structure: {structure} and {other_structure}"]
    found = []
    for (keys, a), b in zip(leaves, others, strict=True):
        same = a is b or (type(a) is type(b) and isinstance(a, float | int | str) and a == b)
        if isinstance(a, jax.Array | np.ndarray) and isinstance(b, jax.Array | np.ndarray):
            same = a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
        if not same:
            found.append(f"{jax.tree_util.keystr(keys)}: {a} and {b}")
    return found


def bits(array: Any) -> bytes:
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if is_key else array).tobytes()


# What the script runs: the grid's last step is cut, to 0.003 of 0.01.
SCRIPT = {"particles": {"num_steps": 200}, "grid": {"final_time": 1.503}}


def main(directory: Path, finish: bool) -> None:
    _loop.next_chunk = lambda steps, elapsed: 3
    resumed = {}
    for name, options in SCRIPT.items():
        try:
            resumed[name] = run(name, **options, checkpoint=eager(directory / name))
        except tw.FlowInterrupted as interrupted:
            interrupted.path.save(directory / "interrupted.npz")
            sys.exit(130)
    if not finish:
        time.sleep(600)
    else:
        found = [
            line for name in SCRIPT for line in differences(content(resumed[name]), content(run(name, **SCRIPT[name])))
        ]
        print("\n".join(found) or "same")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--finish" in sys.argv)
