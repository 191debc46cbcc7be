"""Particles that move by an f-divergence flow without noise: the density they need is estimated by kernels."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)


def log_p(x):
    ring = jnp.linalg.norm(x)
    return -4 * (ring - 2) ** 2 - jnp.log(2 * jnp.pi**1.5)  # normalised, to 1e-8


target = tw.Target(log_p, dim=2)
start = tw.Gaussian(jnp.array([0.5, 0.0]), 0.5 * jnp.eye(2))
key = jax.random.key(0)
x0 = tw.Particles.sample(start, 400, key=key, model=tw.KernelDensity(bandwidth=0.25, shrink=False))
generators = {"reverse KL": tw.generators.reverse_kl, "squared Hellinger": tw.generators.squared_hellinger}

fig, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained", sharex=True, sharey=True)
for ax, (name, generator) in zip(axes, generators.items(), strict=True):
    energy = tw.FDivergence(generator, target)
    path = tw.flow(energy, x0, geometry=tw.Wasserstein(), scheme=tw.Continuous(0.5), final_time=3.0)
    before, after = path.state_at(0).positions, path.final.state.positions
    ax.plot(*before.T, ".", color="0.7", markersize=3, label="start")
    ax.plot(*after.T, ".", markersize=4, label=f"t = 3, energy {float(path.energies[-1]):.2f}")
    ax.set(title=name, xlabel="$x_1$", aspect="equal", ylim=(-3, 3.9))
    ax.legend(loc="upper right", fontsize=8)
axes[0].set_ylabel("$x_2$")
fig.savefig("f_divergence.png", dpi=120)
