"""How far is far, D: norms on vectors, Fisher–Rao on distributions, Wasserstein on measures."""

from thalweg.geometries._base import AbstractGeometry as AbstractGeometry
from thalweg.geometries._base import AbstractMetric as AbstractMetric
from thalweg.geometries._norms import AbstractNorm as AbstractNorm
from thalweg.geometries._norms import Euclidean as Euclidean
from thalweg.geometries._norms import Mahalanobis as Mahalanobis
from thalweg.geometries._norms import MaxNorm as MaxNorm
from thalweg.geometries._norms import NormedMetric as NormedMetric
from thalweg.geometries._norms import OneNorm as OneNorm
from thalweg.geometries._norms import PNorm as PNorm
from thalweg.geometries._norms import SpectralNorm as SpectralNorm
from thalweg.geometries.fisher_rao import FisherRao as FisherRao
from thalweg.geometries.wasserstein import Wasserstein as Wasserstein
