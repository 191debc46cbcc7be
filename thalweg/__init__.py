"""Gradient flows: say what to minimise, how far is far, how a step is taken and how a point is represented; get the
whole path.

Names are imported when they are first asked for, so that `thalweg --help` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from thalweg import generators as generators
    from thalweg import kernels as kernels
    from thalweg import likelihoods as likelihoods
    from thalweg import problems as problems
    from thalweg._check import why_unsupported as why_unsupported
    from thalweg._errors import CheckpointError as CheckpointError
    from thalweg._errors import FlowError as FlowError
    from thalweg._errors import FlowInterrupted as FlowInterrupted
    from thalweg._errors import Unavailable as Unavailable
    from thalweg._errors import UnsupportedCombination as UnsupportedCombination
    from thalweg._first_variation import Cotangent as Cotangent
    from thalweg._first_variation import Velocity as Velocity
    from thalweg._first_variation import first_variation as first_variation
    from thalweg._first_variation import pairing as pairing
    from thalweg._first_variation import second_variation as second_variation
    from thalweg._flow import flow as flow
    from thalweg._flow import iterate as iterate
    from thalweg._loop import Progress as Progress
    from thalweg._measure import ModelDecrease as ModelDecrease
    from thalweg._measure import Snapshot as Snapshot
    from thalweg._measure import Stationary as Stationary
    from thalweg._path import EnergyBalance as EnergyBalance
    from thalweg._path import FlowState as FlowState
    from thalweg._path import Path as Path
    from thalweg._result import RESULTS as RESULTS
    from thalweg._rollout import rollout as rollout
    from thalweg.diagnostics import ResidualBelow as ResidualBelow
    from thalweg.diagnostics import StationaryPoint as StationaryPoint
    from thalweg.diagnostics import stationary_point as stationary_point
    from thalweg.diagnostics import stationary_point_on_piece as stationary_point_on_piece
    from thalweg.energies import KL as KL
    from thalweg.energies import L1 as L1
    from thalweg.energies import Action as Action
    from thalweg.energies import Box as Box
    from thalweg.energies import Congestion as Congestion
    from thalweg.energies import DirichletEnergy as DirichletEnergy
    from thalweg.energies import ElasticNet as ElasticNet
    from thalweg.energies import Entropy as Entropy
    from thalweg.energies import FDivergence as FDivergence
    from thalweg.energies import FisherInformation as FisherInformation
    from thalweg.energies import Functional as Functional
    from thalweg.energies import GroupLasso as GroupLasso
    from thalweg.energies import HalfDeviance as HalfDeviance
    from thalweg.energies import Hyperplane as Hyperplane
    from thalweg.energies import IntegralFunctional as IntegralFunctional
    from thalweg.energies import InteractionEnergy as InteractionEnergy
    from thalweg.energies import InternalEnergy as InternalEnergy
    from thalweg.energies import L2Ball as L2Ball
    from thalweg.energies import MaximumMeanDiscrepancy as MaximumMeanDiscrepancy
    from thalweg.energies import MiniBatch as MiniBatch
    from thalweg.energies import NegativeLogLikelihood as NegativeLogLikelihood
    from thalweg.energies import NonNegative as NonNegative
    from thalweg.energies import PorousMedium as PorousMedium
    from thalweg.energies import PotentialEnergy as PotentialEnergy
    from thalweg.energies import Simplex as Simplex
    from thalweg.energies import as_energy as as_energy
    from thalweg.energies import decompose as decompose
    from thalweg.geometries import L2 as L2
    from thalweg.geometries import Bregman as Bregman
    from thalweg.geometries import BurgEntropy as BurgEntropy
    from thalweg.geometries import DenseFisher as DenseFisher
    from thalweg.geometries import EmpiricalFisher as EmpiricalFisher
    from thalweg.geometries import Euclidean as Euclidean
    from thalweg.geometries import EuclideanProduct as EuclideanProduct
    from thalweg.geometries import FisherRao as FisherRao
    from thalweg.geometries import FrobeniusNorm as FrobeniusNorm
    from thalweg.geometries import GroupNorm as GroupNorm
    from thalweg.geometries import HellingerKantorovich as HellingerKantorovich
    from thalweg.geometries import Hessian as Hessian
    from thalweg.geometries import KernelFisher as KernelFisher
    from thalweg.geometries import Legendre as Legendre
    from thalweg.geometries import LogDeterminant as LogDeterminant
    from thalweg.geometries import Mahalanobis as Mahalanobis
    from thalweg.geometries import MatrixFreeFisher as MatrixFreeFisher
    from thalweg.geometries import MaxNorm as MaxNorm
    from thalweg.geometries import MaxProduct as MaxProduct
    from thalweg.geometries import NewtonSchulz as NewtonSchulz
    from thalweg.geometries import NuclearNorm as NuclearNorm
    from thalweg.geometries import OneNorm as OneNorm
    from thalweg.geometries import OneToRMSNorm as OneToRMSNorm
    from thalweg.geometries import OneToTwoNorm as OneToTwoNorm
    from thalweg.geometries import OrthantEntropy as OrthantEntropy
    from thalweg.geometries import PNorm as PNorm
    from thalweg.geometries import PolarBySVD as PolarBySVD
    from thalweg.geometries import PolarGap as PolarGap
    from thalweg.geometries import Riemannian as Riemannian
    from thalweg.geometries import RMSToMaxNorm as RMSToMaxNorm
    from thalweg.geometries import RMSToRMSNorm as RMSToRMSNorm
    from thalweg.geometries import SchattenNorm as SchattenNorm
    from thalweg.geometries import SimplexEntropy as SimplexEntropy
    from thalweg.geometries import Sobolev as Sobolev
    from thalweg.geometries import SpectralNorm as SpectralNorm
    from thalweg.geometries import SquaredPNorm as SquaredPNorm
    from thalweg.geometries import SumProduct as SumProduct
    from thalweg.geometries import Wasserstein as Wasserstein
    from thalweg.interop import ConstrainedDescent as ConstrainedDescent
    from thalweg.interop import ExplicitDescent as ExplicitDescent
    from thalweg.interop import GeometricDescent as GeometricDescent
    from thalweg.interop import as_optax as as_optax
    from thalweg.interop import scale_by_geometry as scale_by_geometry
    from thalweg.interop import scale_by_unit_ball as scale_by_unit_ball
    from thalweg.io import Checkpoint as Checkpoint
    from thalweg.io import load as load
    from thalweg.recipes import fit as fit
    from thalweg.recipes import minimise as minimise
    from thalweg.schemes import BackAndForth as BackAndForth
    from thalweg.schemes import Backtracking as Backtracking
    from thalweg.schemes import ConstantDamping as ConstantDamping
    from thalweg.schemes import Constrained as Constrained
    from thalweg.schemes import Continuous as Continuous
    from thalweg.schemes import DenseSpectrum as DenseSpectrum
    from thalweg.schemes import Explicit as Explicit
    from thalweg.schemes import ExponentialFiniteVolume as ExponentialFiniteVolume
    from thalweg.schemes import ExponentialRosenbrock as ExponentialRosenbrock
    from thalweg.schemes import FiniteVolume as FiniteVolume
    from thalweg.schemes import ForwardBackward as ForwardBackward
    from thalweg.schemes import GaussNewton as GaussNewton
    from thalweg.schemes import GradientRestart as GradientRestart
    from thalweg.schemes import ImplicitFiniteVolume as ImplicitFiniteVolume
    from thalweg.schemes import Krylov as Krylov
    from thalweg.schemes import Langevin as Langevin
    from thalweg.schemes import LearntDiagonal as LearntDiagonal
    from thalweg.schemes import LinearisedJKO as LinearisedJKO
    from thalweg.schemes import LinearlyImplicit as LinearlyImplicit
    from thalweg.schemes import LineJKO as LineJKO
    from thalweg.schemes import MirrorMomentum as MirrorMomentum
    from thalweg.schemes import Momentum as Momentum
    from thalweg.schemes import MongeAmpereJKO as MongeAmpereJKO
    from thalweg.schemes import NesterovDamping as NesterovDamping
    from thalweg.schemes import Newton as Newton
    from thalweg.schemes import NewtonBall as NewtonBall
    from thalweg.schemes import ODESolver as ODESolver
    from thalweg.schemes import Proximal as Proximal
    from thalweg.schemes import ProximalNewton as ProximalNewton
    from thalweg.schemes import QuasiNewton as QuasiNewton
    from thalweg.schemes import ReplicatorIntegrator as ReplicatorIntegrator
    from thalweg.schemes import SecondOrder as SecondOrder
    from thalweg.schemes import SpeedRestart as SpeedRestart
    from thalweg.schemes import StepInfo as StepInfo
    from thalweg.schemes import TransportReactionSplitting as TransportReactionSplitting
    from thalweg.states import Dirichlet as Dirichlet
    from thalweg.states import Gaussian as Gaussian
    from thalweg.states import Grid as Grid
    from thalweg.states import GridDensity as GridDensity
    from thalweg.states import GridFunction as GridFunction
    from thalweg.states import KernelDensity as KernelDensity
    from thalweg.states import Natural as Natural
    from thalweg.states import NoFlux as NoFlux
    from thalweg.states import Parametric as Parametric
    from thalweg.states import Particles as Particles
    from thalweg.states import Periodic as Periodic
    from thalweg.targets import Samples as Samples
    from thalweg.targets import Target as Target
    from thalweg.transport import Sinkhorn as Sinkhorn
    from thalweg.transport import Transport as Transport
    from thalweg.transport import wasserstein_distance as wasserstein_distance

_SUBMODULES = ("generators", "kernels", "likelihoods", "problems")

# Where each public name lives; a test holds this table and the imports above equal.
_PUBLIC = {
    "thalweg._check": ("why_unsupported",),
    "thalweg._errors": (
        "CheckpointError",
        "FlowError",
        "FlowInterrupted",
        "Unavailable",
        "UnsupportedCombination",
    ),
    "thalweg._first_variation": (
        "Cotangent",
        "Velocity",
        "first_variation",
        "pairing",
        "second_variation",
    ),
    "thalweg._flow": (
        "flow",
        "iterate",
    ),
    "thalweg._loop": ("Progress",),
    "thalweg._measure": (
        "ModelDecrease",
        "Snapshot",
        "Stationary",
    ),
    "thalweg._path": (
        "EnergyBalance",
        "FlowState",
        "Path",
    ),
    "thalweg._result": ("RESULTS",),
    "thalweg._rollout": ("rollout",),
    "thalweg.diagnostics": (
        "ResidualBelow",
        "StationaryPoint",
        "stationary_point",
        "stationary_point_on_piece",
    ),
    "thalweg.energies": (
        "Action",
        "Box",
        "Congestion",
        "DirichletEnergy",
        "ElasticNet",
        "Entropy",
        "FDivergence",
        "FisherInformation",
        "Functional",
        "GroupLasso",
        "Hyperplane",
        "IntegralFunctional",
        "HalfDeviance",
        "InteractionEnergy",
        "InternalEnergy",
        "KL",
        "L1",
        "L2Ball",
        "MaximumMeanDiscrepancy",
        "MiniBatch",
        "NegativeLogLikelihood",
        "NonNegative",
        "PorousMedium",
        "PotentialEnergy",
        "Simplex",
        "as_energy",
        "decompose",
    ),
    "thalweg.geometries": (
        "Bregman",
        "BurgEntropy",
        "Euclidean",
        "EuclideanProduct",
        "DenseFisher",
        "EmpiricalFisher",
        "FisherRao",
        "KernelFisher",
        "MatrixFreeFisher",
        "FrobeniusNorm",
        "GroupNorm",
        "HellingerKantorovich",
        "Hessian",
        "L2",
        "Legendre",
        "LogDeterminant",
        "Mahalanobis",
        "MaxNorm",
        "MaxProduct",
        "NewtonSchulz",
        "NuclearNorm",
        "OneNorm",
        "OneToRMSNorm",
        "OneToTwoNorm",
        "OrthantEntropy",
        "PNorm",
        "PolarBySVD",
        "PolarGap",
        "RMSToMaxNorm",
        "RMSToRMSNorm",
        "Riemannian",
        "SchattenNorm",
        "SimplexEntropy",
        "Sobolev",
        "SpectralNorm",
        "SquaredPNorm",
        "SumProduct",
        "Wasserstein",
    ),
    "thalweg.interop": (
        "ConstrainedDescent",
        "ExplicitDescent",
        "GeometricDescent",
        "as_optax",
        "scale_by_geometry",
        "scale_by_unit_ball",
    ),
    "thalweg.io": (
        "Checkpoint",
        "load",
    ),
    "thalweg.recipes": (
        "fit",
        "minimise",
    ),
    "thalweg.schemes": (
        "BackAndForth",
        "Backtracking",
        "ConstantDamping",
        "Constrained",
        "Continuous",
        "DenseSpectrum",
        "Explicit",
        "ExponentialRosenbrock",
        "ExponentialFiniteVolume",
        "FiniteVolume",
        "ImplicitFiniteVolume",
        "ForwardBackward",
        "GaussNewton",
        "GradientRestart",
        "MongeAmpereJKO",
        "Krylov",
        "Langevin",
        "LearntDiagonal",
        "LineJKO",
        "LinearisedJKO",
        "LinearlyImplicit",
        "MirrorMomentum",
        "Momentum",
        "NesterovDamping",
        "Newton",
        "NewtonBall",
        "ODESolver",
        "Proximal",
        "ProximalNewton",
        "QuasiNewton",
        "ReplicatorIntegrator",
        "SecondOrder",
        "SpeedRestart",
        "StepInfo",
        "TransportReactionSplitting",
    ),
    "thalweg.states": (
        "Dirichlet",
        "Gaussian",
        "Grid",
        "GridDensity",
        "GridFunction",
        "KernelDensity",
        "Natural",
        "NoFlux",
        "Parametric",
        "Particles",
        "Periodic",
    ),
    "thalweg.targets": (
        "Samples",
        "Target",
    ),
    "thalweg.transport": (
        "Sinkhorn",
        "Transport",
        "wasserstein_distance",
    ),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted([*_HOME, *_SUBMODULES])


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"thalweg.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'thalweg' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
