"""A density in a tilted double well relaxes to its Gibbs state: at once within a well, slowly across the barrier."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)


def potential(x):
    c, s = jnp.cos(jnp.pi / 6), jnp.sin(jnp.pi / 6)
    u, v = c * x[0] + s * x[1], c * x[1] - s * x[0]
    return 2 * (u**2 - 1) ** 2 + 2 * v**2


grid = tw.Grid((-2.5, -2.5), (2.5, 2.5), (96, 96))
q0 = tw.GridDensity.from_function(lambda x: jnp.exp(-12 * ((x[0] - 1) ** 2 + (x[1] - 0.5) ** 2)), grid)
gibbs = tw.GridDensity.from_log_density(lambda x: -potential(x), grid)
energy = tw.PotentialEnergy(potential) + tw.Entropy()
distance = lambda q: {"l1": jnp.sum(jnp.abs(q.values - gibbs.values)) * grid.cell_volume}  # noqa: E731
path = tw.flow(energy, q0, geometry=tw.Wasserstein(), scheme=tw.Continuous(0.1), final_time=6.0, measure=distance)
print(path, "mass - 1:", float(path.final.state.mass - 1))

fig, axes = plt.subplots(1, 5, figsize=(13, 3.3), layout="constrained", width_ratios=(1, 1, 1, 1, 1.4))
show = {"origin": "lower", "extent": (-2.5, 2.5, -2.5, 2.5), "vmin": 0, "vmax": 1}
shown = {f"t = {float(path.times[k]):.1f}": path.states.values[k] for k in (1, 5, 20)} | {"Gibbs": gibbs.values}
for ax, (title, values) in zip(axes, shown.items(), strict=False):
    image = ax.imshow(values.T, **show)
    ax.set(title=title, xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")
fig.colorbar(image, ax=axes[3], label="density", extend="max")
axes[4].semilogy(path.times, path.energies - energy(gibbs), label="energy above Gibbs")
axes[4].semilogy(path.times, path.measurements["l1"], "--", label="$L^1$ distance to Gibbs")
axes[4].set(xlabel="time", title="fast in a well, slow across")
axes[4].legend(loc="upper right", fontsize=8)
fig.suptitle("Fokker–Planck in a double well, turned by 30°, against its Gibbs state")
fig.savefig("double_well_gibbs.png", dpi=120)
