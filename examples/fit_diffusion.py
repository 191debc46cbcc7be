"""Fit a potential and a diffusion coefficient to two snapshots of a density, by gradients through the flow."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optimistix

import thalweg as tw

jax.config.update("jax_enable_x64", True)

grid = tw.Grid(-2.5, 2.5, 60)
choices = {"geometry": tw.Wasserstein(), "scheme": tw.Continuous(0.4)}
before = tw.GridDensity.from_function(lambda x: jnp.exp(-8 * jnp.sum((x + 0.2) ** 2)), grid)


def energy(params):
    polynomial = lambda x: params["heights"] @ jnp.stack([x[0] ** k for k in (1, 2, 3, 4)])  # noqa: E731
    return tw.PotentialEnergy(polynomial) + jnp.exp(params["log_temperature"]) * tw.Entropy()


def predicted(params):
    return tw.rollout(energy(params), before, **choices, num_steps=1).final.state


truth = {"heights": jnp.array([0.3, -2.0, 0.0, 1.0]), "log_temperature": jnp.log(0.4)}
after = predicted(truth)  # the second snapshot
guess = {"heights": jnp.array([0.0, 0.0, 0.0, 0.3]), "log_temperature": jnp.log(0.8)}
misfit = lambda params, _: jnp.sum((predicted(params).values - after.values) ** 2)  # noqa: E731
found = optimistix.minimise(misfit, optimistix.BFGS(rtol=1e-9, atol=1e-9), guess, max_steps=200, throw=False).value
print("found:", jax.tree.map(lambda leaf: jnp.round(leaf, 3).tolist(), found))

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
x = grid.centres[:, 0]
ax.fill_between(x, after.values, color="0.85")
ax.plot(x, jnp.stack([before.values, predicted(guess).values, predicted(found).values]).T)
ax.set(xlabel="$x$", ylabel="density", title="A potential and a diffusion coefficient from two snapshots")
ax.legend(["second snapshot", "first snapshot", "flow of the guess", "flow of the fit"])
fig.savefig("fit_diffusion.png", dpi=120)
