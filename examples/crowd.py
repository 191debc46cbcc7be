"""A crowd leaves a room: everyone heads for the door, around a pillar, and nowhere can it be denser than one."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)


def inside(x):
    wall = (jnp.abs(x[0] - 2.05) < 0.1) & (jnp.abs(x[1] - 1) > 0.2)
    pillar = jnp.hypot(x[0] - 1.5, x[1] - 1) < 0.22
    return ~(wall | pillar)


def way(x):  # to the door, and away from it behind
    room = jnp.hypot(x[0] - 2.05, jnp.maximum(jnp.abs(x[1] - 1) - 0.1, 0))
    return jnp.where(x[0] < 2.05, room, 2.05 - x[0])


grid = tw.Grid((0.0, 0.0), (3.3, 2.0), (66, 40), mask=inside)
q0 = tw.GridDensity.from_function(lambda x: (x[0] < 1.0) & (jnp.abs(x[1] - 1) < 0.7), grid)
energy = tw.PotentialEnergy(way) + 0.02 * tw.Entropy() + tw.Congestion(1.0)
scheme = tw.Proximal(0.1, solver=tw.LinearisedJKO())
path = tw.flow(energy, q0, geometry=tw.Wasserstein(), scheme=scheme, num_steps=40)
print(path, "largest density:", float(path.states.values.max()))

fig, axes = plt.subplots(1, 5, figsize=(15, 3), layout="constrained", width_ratios=(1, 1, 1, 1, 0.9))
fig.suptitle("A crowd leaves a room around a pillar (the density is at most one)")
for ax, k in zip(axes, (0, 6, 14, 26), strict=False):
    image = ax.imshow(jnp.where(grid.mask, path.states.values[k], jnp.nan).T, extent=(0, 3.3, 0, 2), vmin=0, vmax=1)
    ax.set(title=f"t = {float(path.times[k]):.1f}", xlabel="$x_1$", ylabel="$x_2$")
fig.colorbar(image, ax=axes[3], label="density", shrink=0.8)
axes[4].plot(path.times, path.states.values[:, :41].sum((1, 2)) * grid.cell_volume)
axes[4].set(title="share still in the room", xlabel="time", ylim=(0, 1.05))
fig.savefig("crowd.png", dpi=120)
