"""In and out: paths in one file, checkpoints of a running flow, labelled arrays, and data."""

from thalweg.io._checkpoint import Checkpoint as Checkpoint
from thalweg.io._data import read_array as read_array
from thalweg.io._npz import load as load
from thalweg.io._npz import save as save
from thalweg.io._xarray import path_to_xarray as path_to_xarray
from thalweg.io._xarray import write_netcdf as write_netcdf
