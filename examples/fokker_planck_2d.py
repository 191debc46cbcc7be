"""Fokker–Planck on a plane with one periodic axis and an arbitrary potential; mass, sign and energy are kept."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)


def potential(x):
    return 2 * jnp.cos(x[0]) + 0.5 * (x[1] - jnp.sin(2 * x[0])) ** 2


grid = tw.Grid((-jnp.pi, -4.0), (jnp.pi, 4.0), (96, 96), boundary=(tw.Periodic(), tw.NoFlux()))
q0 = tw.GridDensity.from_function(lambda x: jnp.exp(-4 * (x[0] ** 2 + (x[1] - 2) ** 2)), grid)
energy = tw.PotentialEnergy(potential) + 0.5 * tw.Entropy()
path = tw.flow(energy, q0, geometry=tw.Wasserstein(), scheme=tw.Continuous(0.5), final_time=6.0)
print("mass - 1:", float(path.final.state.mass - 1), " smallest value:", float(path.states.values.min()))
gibbs = tw.GridDensity.from_log_density(lambda x: -potential(x) / 0.5, grid)
distance = jnp.sum(jnp.abs(path.final.state.values - gibbs.values)) * grid.cell_volume
print("L1 distance to the Gibbs density:", float(distance))

fig, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained", sharey=True)
for ax, index in zip(axes, (0, 1, 3, 12), strict=True):
    extent = (-jnp.pi, jnp.pi, -4, 4)
    ax.imshow(path.states.values[index].T, origin="lower", extent=extent, aspect="auto")
    ax.set(xlabel="angle", title=f"t = {float(path.times[index]):.1f}")
axes[0].set_ylabel("$y$")
fig.savefig("fokker_planck_2d.png", dpi=120)
