"""Optimal transport: W₂ on the line and between Gaussians."""

from thalweg.transport._gaussian import gaussian_distance_squared as gaussian_distance_squared
from thalweg.transport._line import cumulative_mass as cumulative_mass
from thalweg.transport._line import line_distance_squared as line_distance_squared
from thalweg.transport._line import quantile as quantile
