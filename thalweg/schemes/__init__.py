"""How a step is taken, argmin: constrained, explicit, proximal, continuous, Langevin, momentum."""

from thalweg.schemes._base import AbstractScheme as AbstractScheme
from thalweg.schemes._base import StepInfo as StepInfo
from thalweg.schemes._constrained import Constrained as Constrained
from thalweg.schemes._continuous import Continuous as Continuous
from thalweg.schemes._explicit import Backtracking as Backtracking
from thalweg.schemes._explicit import Explicit as Explicit
from thalweg.schemes._finite_volume import FiniteVolume as FiniteVolume
from thalweg.schemes._forward_backward import ForwardBackward as ForwardBackward
from thalweg.schemes._langevin import Langevin as Langevin
from thalweg.schemes._momentum import ConstantDamping as ConstantDamping
from thalweg.schemes._momentum import GradientRestart as GradientRestart
from thalweg.schemes._momentum import Momentum as Momentum
from thalweg.schemes._momentum import NesterovDamping as NesterovDamping
from thalweg.schemes._momentum import SpeedRestart as SpeedRestart
from thalweg.schemes._ode import ODESolver as ODESolver
from thalweg.schemes._proximal import Proximal as Proximal
from thalweg.schemes._proximal_newton import ProximalNewton as ProximalNewton
from thalweg.schemes.proximal_solvers import LineJKO as LineJKO
from thalweg.schemes.proximal_solvers import Newton as Newton
from thalweg.schemes.proximal_solvers import NewtonBall as NewtonBall
from thalweg.schemes.proximal_solvers import QuasiNewton as QuasiNewton
