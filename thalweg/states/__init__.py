"""How a point is represented: a vector (any pytree), a density on a grid, particles, a Gaussian, a member of a
family.
"""

from thalweg.states._base import AbstractDensity as AbstractDensity
from thalweg.states._base import AbstractState as AbstractState
from thalweg.states._base import admissibility as admissibility
from thalweg.states._base import is_density as is_density
from thalweg.states._base import moving as moving
from thalweg.states._base import quadrature_weights as quadrature_weights
from thalweg.states._cell_function import CellFunction as CellFunction
from thalweg.states._cell_function import same_cells as same_cells
from thalweg.states._convolution import check_kernel_array as check_kernel_array
from thalweg.states._convolution import displacement as displacement
from thalweg.states._convolution import kernel_values as kernel_values
from thalweg.states._faces import face_gradients as face_gradients
from thalweg.states._faces import open_faces as open_faces
from thalweg.states._faces import shifted as shifted
from thalweg.states._faces import shifted_back as shifted_back
from thalweg.states._gaussian import Gaussian as Gaussian
from thalweg.states._grid import Grid as Grid
from thalweg.states._grid import NoFlux as NoFlux
from thalweg.states._grid import Periodic as Periodic
from thalweg.states._grid_density import GridDensity as GridDensity
from thalweg.states._grid_function import Dirichlet as Dirichlet
from thalweg.states._grid_function import GridFunction as GridFunction
from thalweg.states._grid_function import Jet as Jet
from thalweg.states._grid_function import Natural as Natural
from thalweg.states._parametric import Parametric as Parametric
from thalweg.states._particles import Particles as Particles
from thalweg.states.densities import KernelDensity as KernelDensity
