"""Norms on vectors, matrices and pytrees, each with its dual, its linear minimisation oracle and its descent."""

from thalweg.geometries.norms._base import AbstractNorm as AbstractNorm
from thalweg.geometries.norms._base import NormedMetric as NormedMetric
from thalweg.geometries.norms._matrices import FrobeniusNorm as FrobeniusNorm
from thalweg.geometries.norms._matrices import NuclearNorm as NuclearNorm
from thalweg.geometries.norms._matrices import SchattenNorm as SchattenNorm
from thalweg.geometries.norms._matrices import SpectralNorm as SpectralNorm
from thalweg.geometries.norms._operators import GroupNorm as GroupNorm
from thalweg.geometries.norms._operators import OneToRMSNorm as OneToRMSNorm
from thalweg.geometries.norms._operators import OneToTwoNorm as OneToTwoNorm
from thalweg.geometries.norms._operators import RMSToMaxNorm as RMSToMaxNorm
from thalweg.geometries.norms._operators import RMSToRMSNorm as RMSToRMSNorm
from thalweg.geometries.norms._polar import AbstractPolar as AbstractPolar
from thalweg.geometries.norms._polar import NewtonSchulz as NewtonSchulz
from thalweg.geometries.norms._polar import PolarBySVD as PolarBySVD
from thalweg.geometries.norms._polar import PolarGap as PolarGap
from thalweg.geometries.norms._products import EuclideanProduct as EuclideanProduct
from thalweg.geometries.norms._products import MaxProduct as MaxProduct
from thalweg.geometries.norms._products import SumProduct as SumProduct
from thalweg.geometries.norms._vectors import Euclidean as Euclidean
from thalweg.geometries.norms._vectors import Mahalanobis as Mahalanobis
from thalweg.geometries.norms._vectors import MaxNorm as MaxNorm
from thalweg.geometries.norms._vectors import OneNorm as OneNorm
from thalweg.geometries.norms._vectors import PNorm as PNorm
