"""Solvers of the proximal step, each for the metric that it knows."""

from thalweg.schemes.proximal_solvers._back_and_forth import BackAndForth as BackAndForth
from thalweg.schemes.proximal_solvers._base import AbstractJKOSolver as AbstractJKOSolver
from thalweg.schemes.proximal_solvers._base import JKOStep as JKOStep
from thalweg.schemes.proximal_solvers._line import LineJKO as LineJKO
from thalweg.schemes.proximal_solvers._linearised import LinearisedJKO as LinearisedJKO
from thalweg.schemes.proximal_solvers._monge_ampere import MongeAmpereJKO as MongeAmpereJKO
from thalweg.schemes.proximal_solvers._newton import Newton as Newton
from thalweg.schemes.proximal_solvers._newton import NewtonBall as NewtonBall
from thalweg.schemes.proximal_solvers._quasi_newton import QuasiNewton as QuasiNewton
