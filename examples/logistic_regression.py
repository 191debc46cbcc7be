"""Natural gradient against Adam on a logistic regression of condition number 1000: seven steps or seven thousand."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import thalweg as tw

jax.config.update("jax_enable_x64", True)

rng = np.random.default_rng(0)
left, right = (np.linalg.qr(rng.normal(size=(n, 10)))[0] for n in (300, 10))
inputs = jnp.asarray(left * np.geomspace(1, 1e-3, 10) @ right.T * 300**0.5)
outcomes = jnp.asarray((rng.random(300) < 1 / (1 + np.exp(-2 * left[:, 0] * 300**0.5))).astype(float))

family = tw.likelihoods.Regression(lambda theta, x: x @ theta, inputs, tw.likelihoods.Bernoulli())
energy = tw.NegativeLogLikelihood(outcomes)
start = tw.Parametric(jnp.zeros(10), family)
step = tw.Explicit(tw.Backtracking())
natural = tw.flow(energy, start, geometry=tw.FisherRao(), scheme=step, num_steps=12, throw=False)

adam, theta = optax.adam(0.1), start.params
loss = jax.value_and_grad(lambda p: -family.log_density(p, outcomes))


def adam_step(carry, _):
    value, slope = loss(carry[0])
    update, memory = adam.update(slope, carry[1])
    return (optax.apply_updates(carry[0], update), memory), value


_, adam_energies = jax.lax.scan(adam_step, (theta, adam.init(theta)), None, length=5000)
best = min(float(natural.energies[-1]), float(adam_energies.min())) - 1e-13
plt.loglog(1 + np.arange(len(natural.energies)), natural.energies - best, "o-", label="natural gradient")
plt.loglog(1 + np.arange(5000), adam_energies - best, label="Adam, 5000 steps of 0.1")
plt.gca().set(xlabel="step", ylabel="F − min F", title="Logistic regression, condition number 1000")
plt.legend()
plt.savefig("logistic_regression.png", dpi=120)
