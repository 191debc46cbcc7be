"""The Fokker–Planck equation in a double well, then the JKO step and Langevin particles: one argument at a time."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)


def log_p(x):
    return -3 * jnp.sum((x**2 - 1) ** 2) + 0.5 * jnp.sum(x)


energy = tw.KL(tw.Target(log_p, dim=1))
start = tw.Gaussian(jnp.array([-1.4]), jnp.array([[0.05]]))
grid = tw.Grid(-2.5, 2.5, 200)
q0 = tw.GridDensity.from_log_density(start.log_density, grid)
W2 = tw.Wasserstein()

pde = tw.flow(energy, q0, geometry=W2, scheme=tw.Continuous(0.1), final_time=2.0)
jko = tw.flow(energy, q0, geometry=W2, scheme=tw.Proximal(0.1), final_time=2.0)
key = jax.random.key(0)
x0 = tw.Particles.sample(start, 20000, key=key)
sde = tw.flow(energy, x0, geometry=W2, scheme=tw.Langevin(0.005), final_time=2.0, key=key, save_every=20)

x = grid.centres[:, 0]
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
ax.hist(sde.final.state.positions[:, 0], bins=80, density=True, color="0.85", label="Langevin particles")
ax.plot(x, pde.final.state.values, label="Fokker–Planck")
ax.plot(x, jko.final.state.values, "--", label="JKO, step 0.1")
exact = tw.GridDensity.from_log_density(log_p, grid).values
ax.plot(x, exact, "k:", label="stationary density")
ax.set(xlabel="$x$", ylabel="density at time 2", title="One energy, three choices")
ax.legend(fontsize=8, loc="upper center")
fig.savefig("fokker_planck.png", dpi=120)
