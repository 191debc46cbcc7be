"""One heap parts into two along the shortest way in the plane: the map of a Wasserstein distance, and its geodesic."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

grid = tw.Grid((-1.0, -1.0), (1.0, 1.0), (64, 64))
heap = lambda x, centre: jnp.exp(-30 * jnp.sum((x - jnp.array(centre)) ** 2))  # noqa: E731
a = tw.GridDensity.from_function(lambda x: heap(x, (-0.5, 0.0)), grid)
b = tw.GridDensity.from_function(lambda x: heap(x, (0.4, 0.45)) + heap(x, (0.4, -0.45)), grid)
found = tw.wasserstein_distance(a, b)
print(f"W2^2 = {found.distance_squared:.5f}, action of the geodesic {found.geodesic.action():.5f}")
print(f"certified: between {found.certificate.least:.5f} and {found.certificate.primal:.5f}")

fig, axes = plt.subplots(1, 5, figsize=(13, 2.8), sharex=True, sharey=True, layout="constrained")
sides = (grid.lower[0], grid.upper[0], grid.lower[1], grid.upper[1])
for k, ax in enumerate(axes):
    density = found.geodesic(k / 4)
    image = ax.imshow(density.values.T, origin="lower", extent=sides, cmap="magma", vmin=0, vmax=10)
    ax.set(title=f"t = {k / 4:.2f}", xlabel="$x_1$")
points = jnp.stack([-0.5 + 0.25 * jnp.cos(jnp.arange(12) * jnp.pi / 6), 0.25 * jnp.sin(jnp.arange(12) * jnp.pi / 6)], 1)
for point, there in zip(points, jax.vmap(found.map)(points), strict=True):
    axes[0].annotate("", there, point, arrowprops={"arrowstyle": "->", "color": "w", "lw": 0.7})
axes[0].set(ylabel="$x_2$")
fig.colorbar(image, ax=axes, label="density", shrink=0.7)
fig.savefig("plane_geodesic.png", dpi=120)
