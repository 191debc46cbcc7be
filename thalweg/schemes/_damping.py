r"""Friction for motion with inertia: $\gamma(t)$ by what it does to a momentum over an interval."""

import abc

import equinox as eqx
import jax.numpy as jnp

from thalweg._types import Scalar, ScalarLike
from thalweg.schemes._base import check_positive


class AbstractDamping(eqx.Module):
    r"""The friction $\gamma(t)$, by what it does over an interval."""

    @abc.abstractmethod
    def over(self, start: Scalar, duration: Scalar) -> tuple[Scalar, Scalar]:
        r"""For $\dot\pi = \xi - \gamma\pi$ with $\xi$ fixed: the factor $e^{-\int\gamma}$ of the old momentum, and the
        time $\int e^{-\int_s\gamma}\,\mathrm ds$ that the gradient counts for.
        """


class ConstantDamping(AbstractDamping):
    r"""The heavy ball, $\ddot x + \gamma\dot x = -\nabla F$.

    On a $\mu$-strongly convex quadratic $\gamma = 2\sqrt\mu$ is critical: $|x - x_*|$ falls like $t\,e^{-\sqrt\mu t}$,
    where gradient flow has $e^{-\mu t}$.

    **Arguments:** `gamma`: $\gamma > 0$, per unit of time.

    **Source:** Polyak, *Some methods of speeding up the convergence of iteration methods* (1964).
    """

    gamma: ScalarLike

    def __check_init__(self) -> None:
        check_positive(self.gamma, "gamma", "ConstantDamping")

    @classmethod
    def critical(cls, curvature: ScalarLike) -> "ConstantDamping":
        r"""$\gamma = 2\sqrt\mu$ for the smallest curvature $\mu > 0$ of the energy."""
        check_positive(curvature, "curvature", "ConstantDamping.critical")
        return cls(2 * curvature**0.5)

    def over(self, start: Scalar, duration: Scalar) -> tuple[Scalar, Scalar]:
        gamma = jnp.asarray(self.gamma, duration.dtype)
        return jnp.exp(-gamma * duration), -jnp.expm1(-gamma * duration) / gamma


class NesterovDamping(AbstractDamping):
    r"""The limit of Nesterov's method, $\ddot x + \tfrac rt\dot x = -\nabla F$.

    For convex F and $r \ge 3$ the error is at most $(r-1)^2|x_0 - x_*|^2/(2t^2)$ in the Euclidean norm, where gradient
    flow has $|x_0 - x_*|^2/(2t)$; for $r < 3$ it is only $O(t^{-2r/3})$. It asks for no constant of the energy.

    **Arguments:** `order`: $r > 0$, dimensionless.

    **Source:** Su, Boyd, Candès, JMLR 17 (2016), theorems 3 and 5; Attouch, Chbani, Riahi, ESAIM COCV 25 (2019).
    """

    order: ScalarLike = 3.0

    def __check_init__(self) -> None:
        check_positive(self.order, "order", "NesterovDamping")

    def over(self, start: Scalar, duration: Scalar) -> tuple[Scalar, Scalar]:
        # (t₀/t₁)^r and ∫ (s/t₁)^r ds, without cancellation where the duration is a small part of the time.
        order, end = jnp.asarray(self.order, duration.dtype), start + duration
        begun = start > 0
        log_ratio = jnp.log1p(-jnp.where(begun, duration / end, 0.5))
        factor = jnp.where(begun, jnp.exp(order * log_ratio), 0)
        weight = -end * jnp.expm1((order + 1) * log_ratio) / (order + 1)
        return factor, jnp.where(begun, weight, end / (order + 1))
