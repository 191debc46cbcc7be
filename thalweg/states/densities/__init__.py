"""Density estimators: how particles learn the value of their own density."""

from thalweg.states.densities._kernel import AbstractDensityModel as AbstractDensityModel
from thalweg.states.densities._kernel import KernelDensity as KernelDensity
