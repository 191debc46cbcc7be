"""A few lines over flow, for common jobs."""

from thalweg.recipes._composite import minimise_composite as minimise_composite
from thalweg.recipes._fit import fit as fit
from thalweg.recipes._minimise import minimise as minimise
