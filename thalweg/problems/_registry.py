"""Problems by name, for the command line and for tests that run over all of them."""

import difflib
import functools
from collections.abc import Callable
from typing import Any

from thalweg.problems import densities, gibbs, nist, porous, targets, vector
from thalweg.problems._problem import AbstractProblem
from thalweg.problems.schools import eight_schools

_PROBLEMS: dict[str, Callable[..., AbstractProblem]] = {
    "rosenbrock": vector.rosenbrock,
    "quadratic": vector.quadratic,
    "beale": vector.beale,
    "himmelblau": vector.himmelblau,
    "ornstein_uhlenbeck": densities.ornstein_uhlenbeck,
    "heat_gaussian": densities.heat_gaussian,
    "heat_modes": densities.heat_modes,
    "quadratic_interaction": densities.quadratic_interaction,
    "barenblatt": porous.barenblatt,
    "confined_barenblatt": porous.confined_barenblatt,
    "double_well": gibbs.double_well,
    "metastable_double_well": gibbs.metastable_double_well,
    "von_mises": gibbs.von_mises,
    "gaussian": targets.gaussian,
    "banana": targets.banana,
    "unequal_mixture": targets.unequal_mixture,
    "funnel": targets.funnel,
    "eight_schools": eight_schools,
}
_PROBLEMS.update({dataset.lower(): functools.partial(nist.nist_regression, dataset) for dataset in nist.DATASETS})


def names() -> tuple[str, ...]:
    """The names that [`thalweg.problems.get`][] knows, grouped by kind: vectors, densities, targets, regressions."""
    return tuple(_PROBLEMS)


def get(name: str, **parameters: Any) -> AbstractProblem:
    """The problem of that name; `get("double_well", dim=2)` is `double_well(dim=2)`.

    **Arguments:** `name`: one of [`thalweg.problems.names`][]; `parameters`: those of the function of that name.

    **Raises:** `ValueError` for an unknown name, with the nearest one; `TypeError` for a parameter that the function
    does not have.
    """
    if name not in _PROBLEMS:
        near = difflib.get_close_matches(str(name).lower(), _PROBLEMS, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else "`thalweg.problems.names()` lists them."
        raise ValueError(f"There is no problem named {name!r}. {hint}")
    return _PROBLEMS[name](**parameters)
