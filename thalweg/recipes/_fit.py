"""fit(): a model fitted by natural gradient with learnt damping, a few lines over flow."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from thalweg import _tree
from thalweg._check import check_fit
from thalweg._launch import launch
from thalweg._measure import ModelDecrease
from thalweg._path import Path
from thalweg._types import PyTree
from thalweg.energies import HalfDeviance
from thalweg.geometries import FisherRao
from thalweg.likelihoods import AbstractFamily, Normal, Regression
from thalweg.recipes._ending import ended
from thalweg.schemes import GaussNewton, LearntDiagonal, LinearlyImplicit
from thalweg.states import Parametric

_FEW = 50


def fit(
    model: Callable[..., Any],
    inputs: PyTree,
    outputs: PyTree,
    params: PyTree,
    *,
    likelihood: AbstractFamily | None = None,
    tolerance: float | None = None,
    num_steps: int = 1000,
    save_every: int | None = None,
) -> Path:
    r"""Fit `model(params, inputs) -> outputs` by damped natural gradient, $\theta^+ = \theta - (F +
    G/\alpha)^{-1}\nabla L$ with the Fisher matrix F: for a normal likelihood Levenberg and Marquardt's method with
    geodesic acceleration.

    The damping follows from the ratio of actual to predicted decrease, in a diagonal metric G learnt on the way; the
    misfit never rises.

    **Arguments:** `model`, `inputs`, `outputs`; `params`: where to begin, a pytree; `likelihood`: of one output
    (`None`: `tw.likelihoods.Normal()`); `tolerance`: stop when the decrease of the misfit that the linearised model
    still promises is below `tolerance`·misfit (`None`: 10⁻⁸ rounding units of the dtype, since convergence is only
    linear where the misfit does not vanish); `num_steps`: the most steps taken;
    `save_every`: steps between two saves, each of which takes about as long as a step (`None`: every step for up to 50
    parameters, every hundredth of `num_steps` beyond).

    **Returns:** a [`thalweg.Path`][] whose energies are the misfit, half the deviance ([`thalweg.HalfDeviance`][]);
    `path.final.state.params` has the user's structure. `path.result` says what was reached: `tw.RESULTS.minimum`,
    `saddle_point` or `flat_point` by the second derivatives of the misfit (with more parameters than data, or others
    that the data do not fix, a perfect fit is a `flat_point`: it is one of many); `escaping` where the parameters run
    to infinity, as those of a logistic regression on separable classes do; `out_of_steps` where `num_steps` were taken
    before the tolerance was reached; `corner`, `step_size_underflow` or `non_finite` where no step helps.

    `path.plot(energy=tw.HalfDeviance(outputs))` draws the data points beside the model; the path does not hold them.

    **Raises:** `TypeError` if `likelihood` is no family; `ValueError` if the model cannot be called as
    `model(params, inputs)`, or if an observation does not fit the likelihood.

    **Source:** Su (2023), the section on natural gradient; Transtrum, Sethna (arXiv:1201.5885, 2012).
    """
    likelihood = Normal() if likelihood is None else likelihood
    state = Parametric(params, Regression(model, inputs, likelihood))
    check_fit(model, inputs, outputs, params, likelihood)
    if save_every is None:
        few = sum(leaf.size for leaf in jax.tree.leaves(params)) <= _FEW
        save_every = max(1, num_steps // (1000 if few else 100))
    if tolerance is None:
        tolerance = 1e-8 * float(jnp.finfo(_tree.dtype_of(params)).eps)
    energy = HalfDeviance(outputs)

    def choices() -> dict[str, Any]:
        return {
            "geometry": FisherRao(),
            "scheme": LinearlyImplicit(curvature=GaussNewton(), scale=LearntDiagonal()),
            "num_steps": num_steps,
            "save_every": save_every,
            "stop": ModelDecrease(tolerance),
        }

    path = launch((fit, tolerance, num_steps, save_every), energy, state, choices)
    return ended(path, energy, tolerance=tolerance)
