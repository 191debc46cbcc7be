"""One landscape, one start, six geometries: how far is far decides the path."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)


def landscape(x):
    basins = 1.3 * jnp.exp(-4 * jnp.sum((x - jnp.array([0.5, 2.2])) ** 2)) + jnp.exp(-jnp.sum((x - 2.4) ** 2 * 0.8))
    return 0.15 * (x[0] - 1.5) ** 2 + 0.6 * (x[1] - 0.5 * x[0]) ** 2 - basins


geometries = {
    "Euclidean": tw.Euclidean(),
    "maximum norm (sign)": tw.MaxNorm(),
    "1-norm (one coordinate)": tw.OneNorm(),
    "entropy (mirror descent)": tw.Bregman(tw.OrthantEntropy()),
    "Burg entropy": tw.Bregman(tw.BurgEntropy()),
    "Riemannian, diag(1, 8 exp(-x$_1$))": tw.Riemannian(lambda x: jnp.diag(jnp.array([1.0, 8.0 * jnp.exp(-x[0])]))),
}
start = jnp.array([0.25, 3.4])
x, y = jnp.meshgrid(jnp.linspace(0.02, 4, 220), jnp.linspace(0.02, 4, 220))
levels = jax.vmap(jax.vmap(landscape))(jnp.stack([x, y], axis=-1))
fig, ax = plt.subplots(figsize=(7, 5), layout="constrained")
ax.contour(x, y, levels, levels=30, colors="0.8", linewidths=0.6)
for name, geometry in geometries.items():
    path = tw.flow(landscape, start, geometry=geometry, scheme=tw.Explicit(0.01), num_steps=1500, save_every=3)
    (line,) = ax.plot(path.states[:, 0], path.states[:, 1], label=name)
    ax.plot(*path.final.state, "o", color=line.get_color(), markersize=5)
ax.plot(*start, "k*", markersize=12)
ax.set(xlabel="$x_1$", ylabel="$x_2$", title="Steepest descent in six geometries, from one start (star)")
ax.legend(fontsize=8, loc="lower right")
fig.savefig("six_geometries.png", dpi=120)
