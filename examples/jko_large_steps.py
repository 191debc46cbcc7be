"""JKO steps may be as large as one likes: each lowers the energy, and small ones follow the Fokker–Planck equation."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

potential = lambda x: 4 * (x[0] ** 2 - 1) ** 2 + 0.5 * x[0]  # noqa: E731
grid = tw.Grid(-2.2, 2.2, 200)
q0 = tw.GridDensity.from_function(lambda x: jnp.exp(-20 * x[0] ** 2), grid)
gibbs = tw.GridDensity.from_log_density(lambda x: -potential(x), grid)
energy = tw.PotentialEnergy(potential) + tw.Entropy()
choices = {"geometry": tw.Wasserstein(), "final_time": 0.4}
pde = tw.flow(energy, q0, scheme=tw.Continuous(0.01), **choices)
steps = jnp.array([0.4, 0.2, 0.1, 0.05, 0.025, 0.0125])
jko = [tw.flow(energy, q0, scheme=tw.Proximal(step), **choices) for step in steps]
errors = [jnp.sum(jnp.abs(p.final.state.values - pde.final.state.values)) * grid.cell_volume for p in jko]

x = grid.axis_centres(0)
fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
axes[0].fill_between(x, gibbs.values, color="0.88", label="Gibbs")
axes[0].plot(x, q0.values, color="0.6", linewidth=1, label="start")
for path in jko[::2]:
    axes[0].plot(x, path.final.state.values, "--")
    name = f"JKO, steps of {float(path.times[1]):.3g}"
    axes[1].semilogy(path.times, path.energies - energy(gibbs), "o--", markersize=4, label=name)
axes[0].plot(x, pde.final.state.values, "k")
axes[1].semilogy(pde.times, pde.energies - energy(gibbs), "k", label="Fokker–Planck")
axes[0].set(title="from a barrier into two wells: t = 0.4", xlabel="$x$", xlim=(-2, 2))
axes[1].set(title="energy above Gibbs", xlabel="time")
axes[2].loglog(steps, jnp.array(errors), "o-", steps, errors[-1] / steps[-1] * steps, "k:")
axes[2].set(title="$L^1$ distance to the PDE (dotted: order 1)", xlabel="step size")
axes[2].set_xticks(steps, steps.tolist())
axes[2].minorticks_off()
[ax.legend() for ax in axes[:2]]
fig.savefig("jko_large_steps.png", dpi=120)
