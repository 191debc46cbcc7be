"""Families of distributions with one definition of the Fisher matrix."""

from thalweg.likelihoods._family import AbstractFamily as AbstractFamily
from thalweg.likelihoods._family import Bernoulli as Bernoulli
from thalweg.likelihoods._family import Normal as Normal
from thalweg.likelihoods._family import NormalMeanScale as NormalMeanScale
from thalweg.likelihoods._family import Poisson as Poisson
from thalweg.likelihoods._family import Regression as Regression
