"""The 2-Wasserstein geometry: distance is what it costs to carry mass."""

import functools
from typing import Any

from thalweg._errors import UnsupportedCombination
from thalweg._types import State
from thalweg.geometries._base import AbstractGeometry, AbstractMetric, unsupported_state


class Wasserstein(AbstractGeometry):
    r"""The 2-Wasserstein (Otto) geometry on probability measures.

    $D(q, q') = W_2^2(q, q')$, and locally $\|v\|^2 = \int q\,|u|^2$ for the velocity field $u = -\nabla\,\delta
    F/\delta q$ that carries the mass:

    $$\partial_t q = \nabla\cdot\left(q\,\nabla\frac{\delta F}{\delta q}\right).$$

    **Arguments:** `mobility`: $m(x, q)$, a function of one point of shape `(dim,)` and the density there that returns
    a non-negative scalar, for grid densities; `None` is $m = q$. The flow is then $\partial_t q = \nabla\cdot(m(x,
    q)\,\nabla\,\delta F/\delta q)$: `lambda x, q: a(x) * q` for a diffusion coefficient that varies, `q * (1 - q)`
    for a crowd that is full at one, 1 for Cahn–Hilliard's. It may also return $q$ times a symmetric positive definite
    matrix, for diffusion that is not the same in all directions: positivity, mass and the Gibbs density are kept.

    **Source:** Su (2023), the section on the Wasserstein gradient flow; Otto (2001); Benamou, Brenier (2000); with a
    mobility: Dolbeault, Nazaret, Savaré, Calc. Var. 34 (2009).
    """

    mobility: Any = None

    def __check_init__(self) -> None:
        if self.mobility is not None and not callable(self.mobility):
            raise ValueError(
                "`mobility` of `Wasserstein` must be a function m(x, q) of one point and the density there, such as "
                f"`lambda x, q: 2 * q`; got {self.mobility!r}."
            )

    def at(self, state: State, memory: Any = None) -> AbstractMetric:
        return metric_at(state, self)


@functools.singledispatch
def metric_at(state: State, geometry: Wasserstein) -> AbstractMetric:
    """The Wasserstein metric of a representation; a new representation registers itself here."""
    known = [cls.__name__ for cls in metric_at.registry if cls is not object]
    raise unsupported_state(geometry, state, known)


def refuse_mobility(state: State, geometry: Wasserstein) -> None:
    """Raise if a mobility is given where only $m = q$ is known."""
    if geometry.mobility is not None:
        raise UnsupportedCombination(
            f"`Wasserstein(mobility=...)` is there for grid densities; a `{type(state).__name__}` moves with the "
            "velocity -∇δF/δq.\nUse `geometry=tw.Wasserstein()`, or a `tw.GridDensity`."
        )
