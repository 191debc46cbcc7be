"""Steepest descent depends on how far is far: one start, one function, six geometries."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)


def bowl(x):
    return 0.5 * (x[0] ** 2 + 12 * x[1] ** 2 + 3 * x[0] * x[1])


hessian = jnp.array([[1.0, 1.5], [1.5, 12.0]])
geometries = {
    "Euclidean": tw.Euclidean(),
    "maximum norm (sign descent)": tw.MaxNorm(),
    "1-norm (Gauss–Southwell)": tw.OneNorm(),
    "4-norm": tw.PNorm(4.0),
    "Mahalanobis, M = Hessian": tw.Mahalanobis(hessian),
    "Mahalanobis, M = diag(1, 4)": tw.Mahalanobis(jnp.diag(jnp.array([1.0, 4.0]))),
}
x, y = jnp.meshgrid(jnp.linspace(-1, 4, 200), jnp.linspace(-0.7, 1.2, 200))
levels = jax.vmap(jax.vmap(bowl))(jnp.stack([x, y], axis=-1))
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.contour(x, y, levels, levels=jnp.geomspace(0.02, 30, 14), colors="0.8", linewidths=0.6)
for name, geometry in geometries.items():
    scheme = tw.Constrained(radius=0.02)
    path = tw.flow(bowl, jnp.array([3.5, 1.0]), geometry=geometry, scheme=scheme, num_steps=300)
    ax.plot(path.states[:, 0], path.states[:, 1], linewidth=1.2, label=name)
ax.set(xlabel="$x_1$", ylabel="$x_2$", title="Steepest descent in six geometries")
ax.legend(fontsize=8, loc="upper left")
fig.savefig("norms.png", dpi=120)
