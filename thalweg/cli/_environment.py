"""On what a run was computed: versions, platform, devices."""

import importlib.metadata
import platform
from typing import Any

REQUIRED = ("jax", "jaxlib", "equinox", "jaxtyping", "diffrax", "optimistix", "lineax", "optax", "numpy", "scipy")
EXTRAS = {
    "cli": ("typer", "rich", "xarray", "h5netcdf", "h5py"),
    "plot": ("matplotlib", "pillow"),
    "parquet": ("pyarrow",),
    "arviz": ("arviz",),
    "ott": ("ott-jax",),
}


def version_of(package: str) -> str | None:
    """The installed version of a package, or `None`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """thalweg and what it stands on."""
    import thalweg

    return {
        "thalweg": thalweg.__version__,
        "python": platform.python_version(),
        **{name: version_of(name) for name in REQUIRED},
    }


def platform_facts() -> dict[str, Any]:
    """The machine and the devices that JAX sees."""
    import jax

    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "backend": jax.default_backend(),
        "devices": [str(device) for device in jax.devices()],
    }
