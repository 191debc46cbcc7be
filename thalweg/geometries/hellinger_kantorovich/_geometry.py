"""The Hellinger–Kantorovich geometry: distance is what it costs to carry mass, and to create and destroy it."""

import functools
from typing import Any

from thalweg._types import ScalarLike, State
from thalweg.geometries._base import AbstractGeometry, AbstractMetric, unsupported_state


class HellingerKantorovich(AbstractGeometry):
    r"""The Hellinger–Kantorovich (Wasserstein–Fisher–Rao) geometry on non-negative measures.

    A velocity is split into what is carried and what grows, at the least cost:

    $$\|v\|^2 = \inf_{v = -\nabla\cdot(qu) + q\rho} \int q\left(\frac{|u|^2}{\text{transport}} +
    \frac{\rho^2}{\text{reaction}}\right)\mathrm dx,$$

    and steepest descent does both along $\xi = \delta F/\delta q$:

    $$\partial_t q = \text{transport}\;\nabla\cdot(q\nabla\xi) - \text{reaction}\; q\,\xi.$$

    Mass is not conserved: use energies whose minimum is a measure, such as $\int q\log(q/\pi) - q + \pi$ (with
    $\int q\log(q/\pi)$ alone the limit is $\pi/e$), and `GridDensity.measure` for a start whose mass is not one. With
    `conserve_mass=True` the growth has mean zero, $-\text{reaction}\;q\,(\xi - \int\xi\,\mathrm dq/\int\mathrm dq)$
    (the spherical geometry). With `reaction=0` it is [`thalweg.Wasserstein`][], with `transport=0` the unconstrained
    or, with mass conserved, the usual [`thalweg.FisherRao`][].

    **Arguments:** `reaction`: the weight of growth, not negative; `transport`: of motion, not negative, not both zero;
    `conserve_mass`: whether growth conserves the mass. (Liero, Mielke and Savaré write α for `transport` and β for
    `reaction`; their standard distance has α = 1, β = 4.)

    **Raises:** `ValueError` if a weight is negative or not finite, or both are zero.

    **Source:** Liero, Mielke, Savaré, *Optimal entropy-transport problems and a new Hellinger–Kantorovich distance*,
    Invent. Math. 211 (2018); Chizat, Peyré, Schmitzer, Vialard, *An interpolating distance between optimal transport
    and Fisher–Rao metrics*, Found. Comput. Math. 18 (2018); with mass conserved: Laschos, Mielke, *Geometric
    properties of cones with applications on the Hellinger–Kantorovich space*, J. Funct. Anal. 276 (2019).
    """

    reaction: ScalarLike = 1.0
    transport: ScalarLike = 1.0
    conserve_mass: bool = False

    def __check_init__(self) -> None:
        weights = {"reaction": self.reaction, "transport": self.transport}
        known = {name: weight for name, weight in weights.items() if isinstance(weight, int | float)}
        for name, weight in known.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"`{name}` of `HellingerKantorovich` must be finite and not negative; got {weight}.")
        if len(known) == 2 and not any(known.values()):
            raise ValueError("`reaction` and `transport` of `HellingerKantorovich` are both zero: nothing could move.")

    def at(self, state: State, memory: Any = None) -> AbstractMetric:
        return metric_at(state, self)


@functools.singledispatch
def metric_at(state: State, geometry: HellingerKantorovich) -> AbstractMetric:
    """The Hellinger–Kantorovich metric of a representation; a new representation registers itself here."""
    known = [cls.__name__ for cls in metric_at.registry if cls is not object]
    raise unsupported_state(geometry, state, known)
