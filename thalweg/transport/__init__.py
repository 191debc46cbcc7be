"""Optimal transport: W₂, its maps and geodesics, and the c-transform."""

from thalweg.transport._c_transform import CTransform as CTransform
from thalweg.transport._c_transform import c_transform as c_transform
from thalweg.transport._gaussian import gaussian_distance_squared as gaussian_distance_squared
from thalweg.transport._line import cumulative_mass as cumulative_mass
from thalweg.transport._line import line_distance_squared as line_distance_squared
from thalweg.transport._line import quantile as quantile
