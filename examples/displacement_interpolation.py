"""The way from one density to another along the shortest path: mass moves, where mixing would fade it in and out."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

grid = tw.Grid(-4.0, 4.0, 400)
bump = lambda centre, width: lambda x: jnp.exp(-0.5 * ((x[0] - centre) / width) ** 2) / width  # noqa: E731
a = tw.GridDensity.from_function(bump(-2.0, 0.4), grid)
b = tw.GridDensity.from_function(lambda x: bump(0.5, 0.25)(x) + bump(2.6, 0.3)(x), grid)
transport = tw.wasserstein_distance(a, b)
print("W2:", float(transport.distance), " gap:", float(transport.certificate.gap))
print("action - W2^2:", float(transport.geodesic.action() - transport.distance_squared))

fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
x = grid.centres[:, 0]
for k in range(6):
    t, colour = k / 5, plt.cm.viridis(0.9 * k / 5)
    axes[0].plot(x, transport.geodesic(t).values, color=colour, label=f"t = {t:.1f}")
    axes[1].plot(x, (1 - t) * a.values + t * b.values, color=colour)
axes[0].set(title="displacement interpolation", xlabel="$x$", ylabel="density")
axes[0].legend(fontsize=7)
axes[1].set(title="mixture", xlabel="$x$", ylim=axes[0].get_ylim())

key = jax.random.key(0)
start = tw.Particles.sample(tw.Gaussian(jnp.zeros(2), 0.3 * jnp.eye(2)), 300, key=key)
angle = 2 * jnp.pi * jnp.arange(300) / 300
ring = tw.Particles(jnp.stack([3 + 1.5 * jnp.cos(angle), 1.5 * jnp.sin(angle)], axis=1))
geodesic = tw.wasserstein_distance(start, ring).geodesic
for k in range(4):
    axes[2].scatter(*geodesic(k / 3).positions.T, s=3, color=plt.cm.viridis(0.9 * k / 3))
axes[2].set(title="particles, by an exact assignment", aspect="equal")
fig.savefig("displacement_interpolation.png", dpi=120)
