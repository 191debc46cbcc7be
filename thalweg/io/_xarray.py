"""A path as labelled arrays: every axis has a name, and whoever opens the file later can read what it is."""

import functools
import json
import os
import re
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg._path import Path
from thalweg.io._atomic import replacing
from thalweg.io._sealed import version
from thalweg.states import AbstractState, Gaussian, GridDensity, GridFunction, Parametric, Particles


class _Variable(NamedTuple):
    dims: tuple[str, ...]
    values: Any
    long_name: str


def path_to_xarray(path: Path) -> Any:
    """The path as an `xarray.Dataset` (needs `thalweg[cli]` or xarray itself).

    The coordinate `time` runs over the saves. A grid density is `density` over `x` (`y`, `z`), the cell centres;
    particles are `position` over `particle` and `dim`; a Gaussian is `mean` and `covariance`; a vector is `state`, or
    one variable for each leaf of its tree; a parametric state is one variable for each parameter. Beside them, where
    they were recorded: `energy`, `dissipation_rate`, `distance_squared`, and each measurement under its own name.

    **Arguments:** `path`: a [`thalweg.Path`][] of one run.

    **Returns:** an `xarray.Dataset`; its attributes hold how the run ended and what was chosen automatically (JSON).

    **Raises:** `ValueError` for a path of several runs at once; `ImportError` if xarray is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError("`to_xarray` needs xarray: install it with `pip install 'thalweg[cli]'`.") from error
    if path.times.ndim != 1:
        raise ValueError(
            f"`to_xarray` takes a path of one run; this one has times of shape {path.times.shape}.\n"
            "Take one of them: `jax.tree.map(lambda leaf: leaf[0], path)`."
        )
    along_arc = "parameter" in path.stats
    variables = _state_variables(path.states)
    records = {
        "energies": ("energy", "energy F"),
        "dissipation_rates": ("dissipation_rate", "dissipation rate -dF/dt"),
        "distances_squared": (
            "distance_squared",
            f"squared distance of the step that led here: {path.stats.get('distances_squared', 'local value')}",
        ),
    }
    for record, (name, long_name) in records.items():
        if record in path.records:
            variables[name] = _Variable(("time",), path.records[record], long_name)
    for name, values in _named_leaves(path.measurements, ""):
        free = name if name not in variables and name != "time" else f"measurement_{name}"
        variables[free] = _Variable(_axes(free, values), values, f"measurement {name}")
    data = {
        name: (v.dims, _storable(v.values), {"long_name": v.long_name, "units": "1"}) for name, v in variables.items()
    }
    time_name = "arc length" if along_arc else "time (sum of step sizes)"
    coordinates = {"time": ("time", _storable(path.times), {"long_name": time_name, "units": "1"})}
    coordinates |= _coordinates(path.states, {d: n for v in data.values() for d, n in _sizes(v)})
    attributes = {
        "title": "gradient flow",
        "message": path.message,
        "num_steps": int(path.final.num_steps),
        "stats": json.dumps(path.stats, default=str, ensure_ascii=False),
        "unavailable": json.dumps(path.unavailable, ensure_ascii=False),
        "state": type(path.states).__name__ if isinstance(path.states, AbstractState) else "vector",
        "thalweg": version(),
    }
    return xarray.Dataset(data, coordinates, attributes)


def write_netcdf(path: Any, file: str | os.PathLike[str]) -> None:
    """Write a path to a netCDF file that `xarray.open_dataset` reads (needs `thalweg[cli]`).

    The file appears under its name only when it is complete; an older one is untouched until then.

    **Arguments:** `path`: a [`thalweg.Path`][], or an `xarray.Dataset` made from one; `file`: the file name.

    **Raises:** `ImportError` if xarray, h5netcdf or h5py is missing; [`thalweg.CheckpointError`][] if the file cannot
    be written.
    """
    dataset = path_to_xarray(path) if isinstance(path, Path) else path
    try:
        import h5netcdf  # noqa: F401
        import h5py  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Writing netCDF needs h5netcdf and h5py ({error.name} is missing): `pip install 'thalweg[cli]'`."
        ) from error
    with replacing(FilePath(os.fspath(file))) as aside:
        dataset.to_netcdf(aside, engine="h5netcdf")


@functools.singledispatch
def _state_variables(states: Any) -> dict[str, _Variable]:
    """The variables of a state with a leading axis of saves; a vector or pytree gives one for each leaf."""
    return {
        name: _Variable(_axes(name, leaf), leaf, f"{name.replace('_', ' ')} of the flow")
        for name, leaf in _named_leaves(states, "state")
    }


@_state_variables.register
def _(states: GridDensity) -> dict[str, _Variable]:
    dims = ("time", *_space(states.grid.dim))
    return {"density": _Variable(dims, states.values, "probability density, averaged over each cell")}


@_state_variables.register
def _(states: GridFunction) -> dict[str, _Variable]:
    dims = ("time", *_space(states.dim))
    return {"function": _Variable(dims, states.nodal_values, "values of the function at the nodes")}


@_state_variables.register
def _(states: Particles) -> dict[str, _Variable]:
    found = {"position": _Variable(("time", "particle", "dim"), states.positions, "positions of the particles")}
    if states.log_weights is not None:
        found["log_weight"] = _Variable(("time", "particle"), states.log_weights, "log weights of the particles")
    return found


@_state_variables.register
def _(states: Gaussian) -> dict[str, _Variable]:
    return {
        "mean": _Variable(("time", "dim"), states.mean, "mean"),
        "covariance": _Variable(("time", "dim", "dim_other"), states.covariance, "covariance"),
    }


@_state_variables.register
def _(states: Parametric) -> dict[str, _Variable]:
    return {
        name: _Variable(_axes(name, leaf), leaf, f"{name.replace('_', ' ')} of the family")
        for name, leaf in _named_leaves(states.params, "params")
    }


def _coordinates(states: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """Cell centres for a density on a grid, nodes for a function; plain counts for every other axis."""
    coordinates: dict[str, Any] = {
        name: (name, np.arange(size)) for name, size in sizes.items() if name in ("particle", "dim", "dim_other")
    }
    if isinstance(states, GridDensity):
        for axis, name in enumerate(_space(states.grid.dim)):
            attributes = {"long_name": f"{name}, cell centres", "units": "1", "spacing": states.grid.spacing[axis]}
            coordinates[name] = (name, np.asarray(states.grid.axis_centres(axis)), attributes)
    if isinstance(states, GridFunction):
        nodes = np.asarray(states.nodes)
        for axis, name in enumerate(_space(states.dim)):
            along = nodes if states.dim == 1 else np.moveaxis(nodes, axis, 0)[:, 0]
            attributes = {"long_name": f"{name}, nodes", "units": "1", "spacing": states.grid.spacing[axis]}
            coordinates[name] = (name, along[:, axis], attributes)
    return coordinates


def _space(dim: int) -> tuple[str, ...]:
    return ("x", "y", "z")[:dim] if dim <= 3 else tuple(f"x{i}" for i in range(1, dim + 1))


def _axes(name: str, values: Any) -> tuple[str, ...]:
    inner = max(np.ndim(values) - 1, 0)
    return ("time", *((f"{name}_axis",) if inner == 1 else (f"{name}_axis{i}" for i in range(inner))))


def _sizes(variable: tuple[Any, ...]) -> list[tuple[str, int]]:
    dims, values, _ = variable
    return list(zip(dims, values.shape, strict=True))


def _named_leaves(tree: Any, base: str) -> list[tuple[str, Any]]:
    """The array leaves of a tree, named by the keys that lead to them, in letters that netCDF allows."""
    found = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if eqx.is_array(leaf) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            parts = [base] if base else []
            parts += [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys]
            found.append((re.sub(r"\W", "_", "_".join(parts)), leaf))
    return found


def _storable(values: Any) -> np.ndarray:
    """A NumPy array of a dtype that netCDF knows."""
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.name in ("bfloat16", "float16") else array
