"""fit(): a model fitted by natural gradient, a few lines over flow."""

from collections.abc import Callable
from typing import Any

from thalweg._flow import flow
from thalweg._measure import Stationary
from thalweg._path import Path
from thalweg._types import PyTree
from thalweg.energies import NegativeLogLikelihood
from thalweg.geometries import FisherRao
from thalweg.likelihoods import AbstractFamily, Normal, Regression
from thalweg.schemes import Backtracking, Explicit
from thalweg.states import Parametric


def fit(
    model: Callable[..., Any],
    inputs: PyTree,
    outputs: PyTree,
    params: PyTree,
    *,
    likelihood: AbstractFamily | None = None,
    tolerance: float = 1e-10,
    num_steps: int = 200,
) -> Path:
    r"""Fit `model(params, inputs) -> outputs` by natural gradient with backtracking (Gauss–Newton for a normal
    likelihood).

    **Arguments:** `model`, `inputs`, `outputs`; `params`: where to begin, a pytree; `likelihood`: of one output
    (`None`: `tw.likelihoods.Normal()`); `tolerance`: stop when the natural gradient's norm $\|\xi\|_*$ (in units of
    standard deviations of the fit) is below it; `num_steps`: the most steps taken.

    **Returns:** a [`thalweg.Path`][]; `path.final.state.params` has the user's structure, and `path.result` says
    whether the tolerance was reached.
    """
    family = Regression(model, inputs, Normal() if likelihood is None else likelihood)
    return flow(
        NegativeLogLikelihood(outputs),
        Parametric(params, family),
        geometry=FisherRao(),
        scheme=Explicit(Backtracking()),
        num_steps=num_steps,
        stop=Stationary(tolerance),
        throw=False,
    )
