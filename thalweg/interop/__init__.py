"""Geometries used elsewhere, unchanged: as transformations of optax and as descents of optimistix."""

from thalweg.interop._optax import as_optax as as_optax
from thalweg.interop._optax import scale_by_geometry as scale_by_geometry
from thalweg.interop._optax import scale_by_unit_ball as scale_by_unit_ball
from thalweg.interop._optimistix import ConstrainedDescent as ConstrainedDescent
from thalweg.interop._optimistix import ExplicitDescent as ExplicitDescent
from thalweg.interop._optimistix import GeometricDescent as GeometricDescent
