"""A gas in a porous medium in two dimensions: its front moves like t^(1/4), as Barenblatt's closed form says."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

k, c, start, n = 1 / 16, (8 * jnp.pi) ** -0.5, 0.002, 81  # for exponent 2 and mass 1
barenblatt = lambda r, t: jnp.maximum(c - k * r**2 / jnp.sqrt(t), 0) / jnp.sqrt(t)  # noqa: E731
radius = lambda t: t**0.25 * jnp.sqrt(c / k)  # noqa: E731

grid = tw.Grid((-0.9, -0.9), (0.9, 0.9), (n, n))
r = jnp.linalg.norm(grid.centres, axis=-1)
q0 = tw.GridDensity.normalised(barenblatt(r, start), grid)
front = lambda q: {"front": jnp.max(jnp.where(q.values > 1e-3 * q.values.max(), r, 0))}  # noqa: E731
choices = {"geometry": tw.Wasserstein(), "scheme": tw.Continuous(0.002)}
path = tw.flow(tw.PorousMedium(2.0), q0, **choices, num_steps=12, measure=front)
times = start + path.times
error = jnp.sum(jnp.abs(path.final.state.values - barenblatt(r, times[-1]))) * grid.cell_volume

fig, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained", width_ratios=(1, 1, 1.2, 1.2))
fig.suptitle(f"Porous medium against Barenblatt (dotted); at the end the $L^1$ error is {float(error):.0e}")
for ax, index in zip(axes, (0, 12), strict=False):
    ax.imshow(path.states.values[index].T, extent=(-0.9, 0.9, -0.9, 0.9), vmin=0, vmax=4.5)
    ax.add_patch(plt.Circle((0, 0), radius(times[index]), fill=False, edgecolor="w", linestyle=":"))
    ax.set(title=f"t = {float(times[index]):.3f}", xlabel="$x_1$", ylabel="$x_2$")
for index, colour in zip((0, 1, 3, 12), plt.cm.viridis((0.0, 0.3, 0.6, 0.9)), strict=True):
    x, values = grid.axis_centres(0), path.states.values[index, n // 2]
    axes[2].plot(x, values, color=colour, label=f"t = {float(times[index]):.3f}")
    axes[2].plot(x, barenblatt(jnp.abs(x), times[index]), "k:", linewidth=1)
axes[2].set(title="density through the centre", xlabel="$x_1$")
axes[2].legend(fontsize=7)
axes[3].plot(times, path.measurements["front"], "o", times, radius(times), "k:")
axes[3].set(title="radius of the front", xlabel="time", ylim=(0, 0.8))
fig.savefig("barenblatt_front.png", dpi=120)
