"""What is minimised, F: functions of a vector, functionals of a density, and their sums."""

from thalweg.energies._base import AbstractEnergy as AbstractEnergy
from thalweg.energies._base import Function as Function
from thalweg.energies._base import Sum as Sum
from thalweg.energies._base import Zero as Zero
from thalweg.energies._base import as_energy as as_energy
from thalweg.energies._coupled import GroupLasso as GroupLasso
from thalweg.energies._coupled import Hyperplane as Hyperplane
from thalweg.energies._coupled import L2Ball as L2Ball
from thalweg.energies._coupled import Simplex as Simplex
from thalweg.energies._decompose import Decomposition as Decomposition
from thalweg.energies._decompose import decompose as decompose
from thalweg.energies._divergence import KL as KL
from thalweg.energies._divergence import FDivergence as FDivergence
from thalweg.energies._functional import Functional as Functional
from thalweg.energies._interaction import InteractionEnergy as InteractionEnergy
from thalweg.energies._likelihood import NegativeLogLikelihood as NegativeLogLikelihood
from thalweg.energies._local import Entropy as Entropy
from thalweg.energies._local import InternalEnergy as InternalEnergy
from thalweg.energies._local import PorousMedium as PorousMedium
from thalweg.energies._local import PotentialEnergy as PotentialEnergy
from thalweg.energies._minibatch import MiniBatch as MiniBatch
from thalweg.energies._proximable import L1 as L1
from thalweg.energies._proximable import AbstractProximable as AbstractProximable
from thalweg.energies._proximable import Box as Box
from thalweg.energies._proximable import ElasticNet as ElasticNet
from thalweg.energies._proximable import NonNegative as NonNegative
