"""The 2-Wasserstein geometry, one file per representation."""

from thalweg.geometries.wasserstein._gaussian import GaussianMetric as GaussianMetric
from thalweg.geometries.wasserstein._geometry import Wasserstein as Wasserstein
from thalweg.geometries.wasserstein._grid import GridMetric as GridMetric
from thalweg.geometries.wasserstein._grid import LineMetric as LineMetric
from thalweg.geometries.wasserstein._grid import check_mobility as check_mobility
from thalweg.geometries.wasserstein._particles import ParticleMetric as ParticleMetric
from thalweg.geometries.wasserstein._tensor import TensorMetric as TensorMetric
from thalweg.geometries.wasserstein._tensor import is_matrix as is_matrix
