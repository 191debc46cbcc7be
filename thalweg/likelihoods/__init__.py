"""Families of distributions with one definition of the Fisher matrix."""

from thalweg.likelihoods._angles import VonMises as VonMises
from thalweg.likelihoods._base import AbstractFamily as AbstractFamily
from thalweg.likelihoods._base import AbstractIndependent as AbstractIndependent
from thalweg.likelihoods._counts import Bernoulli as Bernoulli
from thalweg.likelihoods._counts import Binomial as Binomial
from thalweg.likelihoods._counts import Categorical as Categorical
from thalweg.likelihoods._counts import Geometric as Geometric
from thalweg.likelihoods._counts import NegativeBinomial as NegativeBinomial
from thalweg.likelihoods._counts import Poisson as Poisson
from thalweg.likelihoods._located import Laplace as Laplace
from thalweg.likelihoods._located import StudentT as StudentT
from thalweg.likelihoods._normal import LogNormal as LogNormal
from thalweg.likelihoods._normal import MultivariateNormal as MultivariateNormal
from thalweg.likelihoods._normal import Normal as Normal
from thalweg.likelihoods._normal import NormalMeanScale as NormalMeanScale
from thalweg.likelihoods._positive import Beta as Beta
from thalweg.likelihoods._positive import Dirichlet as Dirichlet
from thalweg.likelihoods._positive import Exponential as Exponential
from thalweg.likelihoods._positive import Gamma as Gamma
from thalweg.likelihoods._regression import Product as Product
from thalweg.likelihoods._regression import Regression as Regression
