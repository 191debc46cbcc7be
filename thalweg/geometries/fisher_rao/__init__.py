"""The Fisher–Rao geometry, one file per kind of representation."""

from thalweg.geometries.fisher_rao._densities import GaussianFisherMetric as GaussianFisherMetric
from thalweg.geometries.fisher_rao._densities import GridFisherMetric as GridFisherMetric
from thalweg.geometries.fisher_rao._empirical import EmpiricalFisher as EmpiricalFisher
from thalweg.geometries.fisher_rao._geometry import FisherRao as FisherRao
from thalweg.geometries.fisher_rao._parametric import ParametricMetric as ParametricMetric
from thalweg.geometries.fisher_rao._solvers import DenseFisher as DenseFisher
from thalweg.geometries.fisher_rao._solvers import KernelFisher as KernelFisher
from thalweg.geometries.fisher_rao._solvers import MatrixFreeFisher as MatrixFreeFisher
