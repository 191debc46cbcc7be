"""Aggregation into patches: attraction over short distances gathers a disturbed uniform density, pressure holds it."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

grid = tw.Grid((0.0, 0.0), (1.0, 1.0), (48, 48), boundary=tw.Periodic())
noise = jax.random.uniform(jax.random.key(0), grid.shape, minval=0.5, maxval=1.5)
q0 = tw.GridDensity.normalised(noise, grid)
energy = 0.003 * tw.PorousMedium(2.0) - tw.InteractionEnergy(tw.kernels.gaussian(0.06))
path = tw.flow(energy, q0, geometry=tw.Wasserstein(), scheme=tw.Continuous(0.25), final_time=4.0)
print(path, "mass - 1:", float(path.final.state.mass - 1))

fig, axes = plt.subplots(1, 5, figsize=(14, 3.4), layout="constrained", width_ratios=(1, 1, 1, 1, 1.2))
fig.suptitle("Aggregation into patches: attraction of range 0.06 against the pressure of a porous medium")
for ax, k in zip(axes, (1, 5, 7, 16), strict=False):
    logarithm = jnp.log10(jnp.maximum(path.states.values[k], 1e-3))
    image = ax.imshow(logarithm.T, origin="lower", extent=(0, 1, 0, 1), vmin=-2, vmax=1.2)
    ax.set(title=f"t = {float(path.times[k]):.2f}", xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")
fig.colorbar(image, ax=axes[3], label="log$_{10}$ density", extend="min")
axes[4].plot(path.times, path.energies, "o-")
axes[4].set(title="energy", xlabel="time")
fig.savefig("aggregation_patches.png", dpi=120)
