"""The Fisher–Rao geometry: distance is how well two distributions can be told apart."""

import functools
from typing import Any

from thalweg._types import State
from thalweg.geometries._base import AbstractGeometry, AbstractMetric, unsupported_state
from thalweg.geometries.fisher_rao._solvers import DenseFisher, KernelFisher, MatrixFreeFisher


class FisherRao(AbstractGeometry):
    r"""The Fisher–Rao geometry, $D(q, q') = 2\,\mathrm{KL}(q\,\|\,q')$ to leading order.

    On a parametric family the norm is $\dot\theta^\top G\,\dot\theta$ with the Fisher matrix $G$, and steepest
    descent is the natural gradient $-G^{-1}\nabla F$. On densities it is $\int v^2/q$ with the mass conserved:
    $\partial_t q = -q\,(\delta F/\delta q - \int \delta F/\delta q\,\mathrm dq)$.

    **Arguments:** `damping`: added to the Fisher matrix of a parametric family as `damping * diag(G)` (Marquardt's
    scaling, so that it does not depend on units); zero by default; `solver`: how its linear systems are solved,
    [`thalweg.DenseFisher`][], [`thalweg.KernelFisher`][] or [`thalweg.MatrixFreeFisher`][]; `None` takes the cheapest
    for the shapes at hand, which `geometry.at(state).form` and `.why` tell.

    Where the matrix is singular and there is no damping, directions that do not change the distribution stay at rest
    (the solution of least norm in coordinates scaled by the root of the diagonal).

    **Source:** Su (2023), the section on natural gradient; Amari, *Natural gradient works efficiently in learning*
    (1998).
    """

    damping: float = 0.0
    solver: Any = None

    def __check_init__(self) -> None:
        if isinstance(self.damping, int | float) and self.damping < 0:
            raise ValueError(f"`damping` of `FisherRao` must not be negative; got {self.damping}.")
        if self.solver is not None and not isinstance(self.solver, DenseFisher | KernelFisher | MatrixFreeFisher):
            raise TypeError(
                "`solver` of `FisherRao` must be `tw.DenseFisher()`, `tw.KernelFisher()`, `tw.MatrixFreeFisher()` or "
                f"`None`; got {self.solver!r}."
            )

    def at(self, state: State, memory: Any = None) -> AbstractMetric:
        return metric_at(state, self)


@functools.singledispatch
def metric_at(state: State, geometry: FisherRao) -> AbstractMetric:
    """The Fisher–Rao metric of a representation; a new representation registers itself here."""
    known = [cls.__name__ for cls in metric_at.registry if cls is not object]
    raise unsupported_state(geometry, state, known)
