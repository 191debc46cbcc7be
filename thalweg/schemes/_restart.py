"""Restarts of motion with inertia: where it goes astray it is stopped, and begins again from rest."""

import abc

import equinox as eqx

from thalweg._types import Count, Flag, Scalar


class Moment(eqx.Module):
    r"""What a restart looks at after a step: the slope $\langle\xi, \dot x\rangle$ of the energy along the motion, the
    kinetic energy before and after, and the steps since the last restart.
    """

    slope: Scalar
    kinetic_before: Scalar
    kinetic_after: Scalar
    num_steps: Count


class AbstractRestart(eqx.Module):
    """When to stop the motion and begin again from rest."""

    @abc.abstractmethod
    def is_due(self, moment: Moment) -> Flag:
        """Whether the momentum is to be dropped after this step."""


class GradientRestart(AbstractRestart):
    r"""Begin again from rest as soon as the motion goes uphill, $\langle\xi, \dot x\rangle > 0$.

    **Source:** O'Donoghue, Candès, Found. Comput. Math. 15 (2015).
    """

    def is_due(self, moment: Moment) -> Flag:
        return moment.slope > 0


class SpeedRestart(AbstractRestart):
    r"""Begin again from rest as soon as the speed $\|\dot x\|$ falls.

    **Arguments:** `min_steps`: the fewest steps between two restarts.

    **Source:** Su, Boyd, Candès, JMLR 17 (2016), section 5.
    """

    min_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        if not isinstance(self.min_steps, int) or self.min_steps < 1:
            raise ValueError(f"`min_steps` of `SpeedRestart` must be a positive integer; got {self.min_steps!r}.")

    def is_due(self, moment: Moment) -> Flag:
        return (moment.kinetic_after < moment.kinetic_before) & (moment.num_steps >= self.min_steps)
