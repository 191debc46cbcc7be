"""Families of distributions with one definition of the Fisher matrix."""

from thalweg.likelihoods._base import AbstractFamily as AbstractFamily
from thalweg.likelihoods._base import AbstractIndependent as AbstractIndependent
from thalweg.likelihoods._counts import Bernoulli as Bernoulli
from thalweg.likelihoods._counts import Poisson as Poisson
from thalweg.likelihoods._normal import LogNormal as LogNormal
from thalweg.likelihoods._normal import MultivariateNormal as MultivariateNormal
from thalweg.likelihoods._normal import Normal as Normal
from thalweg.likelihoods._normal import NormalMeanScale as NormalMeanScale
from thalweg.likelihoods._regression import Regression as Regression
