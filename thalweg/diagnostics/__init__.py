"""What can be said of a point or a path after it has been computed: which kind of stationary point was reached."""

from thalweg.diagnostics._around_piece import AroundPiece as AroundPiece
from thalweg.diagnostics._around_piece import Feasible as Feasible
from thalweg.diagnostics._around_piece import around_piece as around_piece
from thalweg.diagnostics._around_piece import settled_curvature as settled_curvature
from thalweg.diagnostics._around_piece import travels as travels
from thalweg.diagnostics._composite import ResidualBelow as ResidualBelow
from thalweg.diagnostics._composite import downhill_on_piece as downhill_on_piece
from thalweg.diagnostics._composite import stationary_point_on_piece as stationary_point_on_piece
from thalweg.diagnostics._far import FarAway as FarAway
from thalweg.diagnostics._far import far_away as far_away
from thalweg.diagnostics._far import slope_jumps as slope_jumps
from thalweg.diagnostics._stationarity import LARGEST_DENSE as LARGEST_DENSE
from thalweg.diagnostics._stationarity import StationaryPoint as StationaryPoint
from thalweg.diagnostics._stationarity import curvature_of as curvature_of
from thalweg.diagnostics._stationarity import stationary_point as stationary_point
from thalweg.diagnostics._surroundings import Surroundings as Surroundings
from thalweg.diagnostics._surroundings import is_held as is_held
from thalweg.diagnostics._surroundings import surroundings as surroundings
