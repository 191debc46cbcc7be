"""The 2-Wasserstein geometry: distance is what it costs to carry mass."""

import functools
from typing import Any

from thalweg._types import State
from thalweg.geometries._base import AbstractGeometry, AbstractMetric, unsupported_state


class Wasserstein(AbstractGeometry):
    r"""The 2-Wasserstein (Otto) geometry on probability measures.

    $D(q, q') = W_2^2(q, q')$, and locally $\|v\|^2 = \int q\,|u|^2$ for the velocity field $u = -\nabla\,\delta
    F/\delta q$ that carries the mass:

    $$\partial_t q = \nabla\cdot\left(q\,\nabla\frac{\delta F}{\delta q}\right).$$

    **Source:** Su (2023), the section on the Wasserstein gradient flow; Otto (2001); Benamou, Brenier (2000).
    """

    def at(self, state: State, memory: Any = None) -> AbstractMetric:
        return metric_at(state, self)


@functools.singledispatch
def metric_at(state: State, geometry: Wasserstein) -> AbstractMetric:
    """The Wasserstein metric of a representation; a new representation registers itself here."""
    known = [cls.__name__ for cls in metric_at.registry if cls is not object]
    raise unsupported_state(geometry, state, known)
