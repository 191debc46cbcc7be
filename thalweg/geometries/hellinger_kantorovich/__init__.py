"""The Hellinger–Kantorovich geometry: mass is carried, created and destroyed."""

from thalweg.geometries.hellinger_kantorovich._geometry import HellingerKantorovich as HellingerKantorovich
from thalweg.geometries.hellinger_kantorovich._grid import GridReactionMetric as GridReactionMetric
from thalweg.geometries.hellinger_kantorovich._grid import GridTransportReactionMetric as GridTransportReactionMetric
