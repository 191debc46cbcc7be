"""Bregman geometries: mirror descent, its flow and its proximal steps."""

from thalweg.geometries.bregman._base import AbstractLegendre as AbstractLegendre
from thalweg.geometries.bregman._entropies import BurgEntropy as BurgEntropy
from thalweg.geometries.bregman._entropies import LogDeterminant as LogDeterminant
from thalweg.geometries.bregman._entropies import OrthantEntropy as OrthantEntropy
from thalweg.geometries.bregman._entropies import SimplexEntropy as SimplexEntropy
from thalweg.geometries.bregman._entropies import SquaredPNorm as SquaredPNorm
from thalweg.geometries.bregman._geometry import Bregman as Bregman
from thalweg.geometries.bregman._geometry import BregmanMetric as BregmanMetric
from thalweg.geometries.bregman._geometry import hessian_matrix as hessian_matrix
from thalweg.geometries.bregman._legendre import Legendre as Legendre
from thalweg.geometries.bregman._legendre import as_legendre as as_legendre
