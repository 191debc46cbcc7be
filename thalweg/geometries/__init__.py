"""How far is far, D: norms, Bregman and Riemannian geometries on vectors, Fisher–Rao on distributions, Wasserstein on
measures.
"""

from thalweg.geometries._base import AbstractGeometry as AbstractGeometry
from thalweg.geometries._base import AbstractMetric as AbstractMetric
from thalweg.geometries._base import admissibility_in as admissibility_in
from thalweg.geometries._function_spaces import L2 as L2
from thalweg.geometries._function_spaces import FunctionMetric as FunctionMetric
from thalweg.geometries._function_spaces import Sobolev as Sobolev
from thalweg.geometries._riemannian import Hessian as Hessian
from thalweg.geometries._riemannian import Riemannian as Riemannian
from thalweg.geometries._riemannian import RiemannianMetric as RiemannianMetric
from thalweg.geometries.bregman import AbstractLegendre as AbstractLegendre
from thalweg.geometries.bregman import Bregman as Bregman
from thalweg.geometries.bregman import BregmanMetric as BregmanMetric
from thalweg.geometries.bregman import BurgEntropy as BurgEntropy
from thalweg.geometries.bregman import Legendre as Legendre
from thalweg.geometries.bregman import LogDeterminant as LogDeterminant
from thalweg.geometries.bregman import OrthantEntropy as OrthantEntropy
from thalweg.geometries.bregman import SimplexEntropy as SimplexEntropy
from thalweg.geometries.bregman import SquaredPNorm as SquaredPNorm
from thalweg.geometries.fisher_rao import FisherRao as FisherRao
from thalweg.geometries.norms import AbstractNorm as AbstractNorm
from thalweg.geometries.norms import AbstractPolar as AbstractPolar
from thalweg.geometries.norms import Euclidean as Euclidean
from thalweg.geometries.norms import EuclideanProduct as EuclideanProduct
from thalweg.geometries.norms import FrobeniusNorm as FrobeniusNorm
from thalweg.geometries.norms import GroupNorm as GroupNorm
from thalweg.geometries.norms import Mahalanobis as Mahalanobis
from thalweg.geometries.norms import MaxNorm as MaxNorm
from thalweg.geometries.norms import MaxProduct as MaxProduct
from thalweg.geometries.norms import NewtonSchulz as NewtonSchulz
from thalweg.geometries.norms import NormedMetric as NormedMetric
from thalweg.geometries.norms import NuclearNorm as NuclearNorm
from thalweg.geometries.norms import OneNorm as OneNorm
from thalweg.geometries.norms import OneToRMSNorm as OneToRMSNorm
from thalweg.geometries.norms import OneToTwoNorm as OneToTwoNorm
from thalweg.geometries.norms import PNorm as PNorm
from thalweg.geometries.norms import PolarBySVD as PolarBySVD
from thalweg.geometries.norms import PolarGap as PolarGap
from thalweg.geometries.norms import RMSToMaxNorm as RMSToMaxNorm
from thalweg.geometries.norms import RMSToRMSNorm as RMSToRMSNorm
from thalweg.geometries.norms import SchattenNorm as SchattenNorm
from thalweg.geometries.norms import SpectralNorm as SpectralNorm
from thalweg.geometries.norms import SumProduct as SumProduct
from thalweg.geometries.wasserstein import Wasserstein as Wasserstein
