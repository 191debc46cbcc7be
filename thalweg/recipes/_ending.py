"""What kind of point a minimisation ended at."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._path import Path
from thalweg._result import RESULTS
from thalweg.diagnostics import stationary_point
from thalweg.energies import as_energy
from thalweg.schemes import Krylov


def ended(path: Path, energy: Callable[..., Any]) -> Path:
    """The path with its result made precise, where it ended at a stationary point: which kind of point that is."""
    if not bool(path.result == RESULTS.stopped):
        return path
    stats = path.final.stats
    lowest, largest = float(stats["lowest_curvature"]), float(stats["largest_curvature"])
    size = sum(leaf.size for leaf in jax.tree.leaves(path.final.state))
    certain = 1e3 * size * float(jnp.finfo(_tree.dtype_of(path.final.state)).eps) * largest
    if path.stats["solver"] != Krylov.__name__ and lowest > certain:
        # The last step had the whole spectrum in its hands.
        result = RESULTS.minimum
    else:
        kind = stationary_point(as_energy(energy), path.final.state)
        result = RESULTS.where(kind.is_saddle, RESULTS.saddle_point, RESULTS.flat_point)
        result = RESULTS.where(kind.is_minimum, RESULTS.minimum, result)
    return dataclasses.replace(path, result=result)
