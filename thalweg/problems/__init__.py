"""Named, sourced problems with exact answers where they are known, shared by tests, command line and examples.

`thalweg.problems.names()` lists them, `thalweg.problems.get("double_well", dim=2)` builds one, and each is also a
function here. Arrays have JAX's default precision at the time of the call; data files are read when they are asked
for.
"""

from thalweg.problems._problem import AbstractProblem as AbstractProblem
from thalweg.problems._problem import DensityProblem as DensityProblem
from thalweg.problems._problem import Moments as Moments
from thalweg.problems._problem import RegressionProblem as RegressionProblem
from thalweg.problems._problem import TargetProblem as TargetProblem
from thalweg.problems._problem import VectorProblem as VectorProblem
from thalweg.problems._quadrature import cell_averages as cell_averages
from thalweg.problems._registry import get as get
from thalweg.problems._registry import names as names
from thalweg.problems.densities import heat_gaussian as heat_gaussian
from thalweg.problems.densities import heat_modes as heat_modes
from thalweg.problems.densities import ornstein_uhlenbeck as ornstein_uhlenbeck
from thalweg.problems.densities import quadratic_interaction as quadratic_interaction
from thalweg.problems.gibbs import double_well as double_well
from thalweg.problems.gibbs import metastable_double_well as metastable_double_well
from thalweg.problems.gibbs import von_mises as von_mises
from thalweg.problems.nist import DATASETS as DATASETS
from thalweg.problems.nist import nist_regression as nist_regression
from thalweg.problems.porous import barenblatt as barenblatt
from thalweg.problems.porous import confined_barenblatt as confined_barenblatt
from thalweg.problems.schools import eight_schools as eight_schools
from thalweg.problems.targets import banana as banana
from thalweg.problems.targets import funnel as funnel
from thalweg.problems.targets import gaussian as gaussian
from thalweg.problems.targets import unequal_mixture as unequal_mixture
from thalweg.problems.vector import beale as beale
from thalweg.problems.vector import himmelblau as himmelblau
from thalweg.problems.vector import quadratic as quadratic
from thalweg.problems.vector import rosenbrock as rosenbrock
