"""How far is far, D: norms on vectors, Fisher–Rao on distributions, Wasserstein on measures."""

from thalweg.geometries._base import AbstractGeometry as AbstractGeometry
from thalweg.geometries._base import AbstractMetric as AbstractMetric
from thalweg.geometries._base import admissibility_in as admissibility_in
from thalweg.geometries._function_spaces import L2 as L2
from thalweg.geometries._function_spaces import FunctionMetric as FunctionMetric
from thalweg.geometries._function_spaces import Sobolev as Sobolev
from thalweg.geometries.fisher_rao import FisherRao as FisherRao
from thalweg.geometries.norms import AbstractNorm as AbstractNorm
from thalweg.geometries.norms import Euclidean as Euclidean
from thalweg.geometries.norms import Mahalanobis as Mahalanobis
from thalweg.geometries.norms import MaxNorm as MaxNorm
from thalweg.geometries.norms import NormedMetric as NormedMetric
from thalweg.geometries.norms import OneNorm as OneNorm
from thalweg.geometries.norms import PNorm as PNorm
from thalweg.geometries.norms import SpectralNorm as SpectralNorm
from thalweg.geometries.wasserstein import Wasserstein as Wasserstein
