"""Gradients go through a whole flow: find the temperature and the drift that turned one density into another."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)
grid = tw.Grid(-4.0, 4.0, 80)
q0 = tw.GridDensity.from_function(lambda x: jnp.exp(-2 * jnp.sum((x - 1.5) ** 2)), grid)


def final_density(params):
    energy = tw.PotentialEnergy(lambda x: 0.5 * params[0] * jnp.sum(x**2)) + params[1] * tw.Entropy()
    path = tw.rollout(energy, q0, geometry=tw.Wasserstein(), scheme=tw.Proximal(0.1), num_steps=5)
    return path.final.state.values


truth = jnp.array([1.3, 0.6])
observed = final_density(truth)


def residuals(params):
    return (final_density(params) - observed) * jnp.sqrt(grid.cell_volume)


jacobian_of = jax.jit(lambda params: (jax.jacfwd(residuals)(params), residuals(params)))

params, history = jnp.array([0.7, 1.0]), []
for _ in range(6):  # Gauss–Newton, with the Jacobian of the flow
    jacobian, residual = jacobian_of(params)
    params = params - jnp.linalg.lstsq(jacobian, residual)[0]
    history.append(float(jnp.linalg.norm(params - truth)))
print(params, "truth", truth)
fig, ax = plt.subplots(figsize=(5, 3.6), layout="constrained")
ax.semilogy(range(1, 7), history, "o-")
ax.set(xlabel="Gauss–Newton step", ylabel="error of (drift, temperature)", title="Fitting a flow")
fig.savefig("differentiate.png", dpi=120)
