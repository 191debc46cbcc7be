"""Variational inference as two flows of one energy: Gaussians in the Wasserstein and in the Fisher–Rao geometry."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

banana = tw.Target(lambda x: -0.5 * x[0] ** 2 / 4 - 0.5 * (x[1] - 0.25 * x[0] ** 2) ** 2, dim=2)
start = tw.Gaussian(jnp.array([3.0, -2.0]), 0.2 * jnp.eye(2))
geometries = {"Wasserstein": tw.Wasserstein(), "Fisher–Rao": tw.FisherRao()}

angle = jnp.linspace(0, 2 * jnp.pi, 100)
circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
x, y = jnp.meshgrid(jnp.linspace(-5, 5, 150), jnp.linspace(-4, 6, 150))
density = jnp.exp(jax.vmap(jax.vmap(banana.log_density))(jnp.stack([x, y], axis=-1)))
fig, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained", sharey=True)
for ax, (name, geometry) in zip(axes, geometries.items(), strict=True):
    path = tw.flow(tw.KL(banana), start, geometry=geometry, scheme=tw.Continuous(0.5), final_time=6.0)
    ax.contourf(x, y, density, levels=8, cmap="Greys", alpha=0.6)
    for index in range(0, len(path), 2):
        state = path.state_at(index)
        ellipse = state.mean[:, None] + 2 * jnp.linalg.cholesky(state.covariance) @ circle
        ax.plot(*ellipse, color=plt.cm.viridis(index / len(path)))
    ax.set(title=f"{name}: KL falls to {float(path.energies[-1]):.3f} + const", xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")
fig.savefig("gaussian.png", dpi=120)
