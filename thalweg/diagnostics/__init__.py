"""What can be said of a point or a path after it has been computed: which kind of stationary point was reached."""

from thalweg.diagnostics._composite import ResidualBelow as ResidualBelow
from thalweg.diagnostics._composite import stationary_point_on_piece as stationary_point_on_piece
from thalweg.diagnostics._stationarity import StationaryPoint as StationaryPoint
from thalweg.diagnostics._stationarity import curvature_of as curvature_of
from thalweg.diagnostics._stationarity import stationary_point as stationary_point
