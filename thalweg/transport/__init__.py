"""Optimal transport: W₂, its maps and geodesics, and the c-transform."""

from thalweg.transport import _assignment as _assignment
from thalweg.transport._c_transform import CTransform as CTransform
from thalweg.transport._c_transform import c_transform as c_transform
from thalweg.transport._distance import Transport as Transport
from thalweg.transport._distance import wasserstein_distance as wasserstein_distance
from thalweg.transport._gaussian import gaussian_distance_squared as gaussian_distance_squared
from thalweg.transport._line import cumulative_mass as cumulative_mass
from thalweg.transport._line import line_distance_squared as line_distance_squared
from thalweg.transport._line import quantile as quantile
from thalweg.transport._line_transport import line_transport as line_transport
from thalweg.transport._sinkhorn import Sinkhorn as Sinkhorn
