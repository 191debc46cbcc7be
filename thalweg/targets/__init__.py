"""What a distribution to reach is: a log density, or samples."""

from thalweg.targets._target import Samples as Samples
from thalweg.targets._target import Target as Target
from thalweg.targets._target import check_point_function as check_point_function
