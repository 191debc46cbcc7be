"""Figures, animations and reports of paths; needs matplotlib, which `thalweg[plot]` brings."""

try:
    from thalweg.plotting import _functions, _gaussians, _grids, _parametric, _particles
    from thalweg.plotting._animate import animate_path as animate_path
    from thalweg.plotting._animate import frames_png as frames_png
    from thalweg.plotting._path import compare_paths as compare_paths
    from thalweg.plotting._path import plot_path as plot_path
    from thalweg.plotting._report import write_figures as write_figures
    from thalweg.plotting._report import write_report as write_report
    from thalweg.plotting._states import plot_state as plot_state
    from thalweg.plotting._words import ReferenceRow as ReferenceRow
except ImportError as _error:
    if (_error.name or "").partition(".")[0] not in ("matplotlib", "PIL"):
        raise
    raise ImportError(
        f"Figures need matplotlib and pillow; `{_error.name}` could not be imported.\n"
        "Install them with: pip install 'thalweg[plot]'",
        name=_error.name,
    ) from None

# Imported so that each kind of state registers its picture.
del _functions, _gaussians, _grids, _parametric, _particles
