"""Natural gradient against Adam on a logistic regression of condition number 1000: a few steps, or thousands."""

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
start, step = tw.Parametric(jnp.zeros(10), family), tw.Explicit(tw.Backtracking())
natural = tw.flow(energy, start, geometry=tw.FisherRao(), scheme=step, num_steps=12, throw=False)

adam = optax.adam(0.1)
loss = jax.value_and_grad(lambda p: -family.log_density(p, outcomes))


def adam_step(carry, _):
    value, slope = loss(carry[0])
    update, memory = adam.update(slope, carry[1])
    return (carry[0] + update, memory), value


_, adam_energies = jax.lax.scan(adam_step, (start.params, adam.init(start.params)), None, length=5000)
best = float(natural.energies[-1]) - 1e-13
plt.loglog(1 + np.arange(len(natural.energies)), natural.energies - best, "o-", label="natural gradient")
plt.loglog(1 + np.arange(5000), adam_energies - best, label="Adam, 5000 steps of 0.1")
plt.legend()
plt.gca().set(xlabel="step", ylabel="F − min F", title="Logistic regression, condition number 1000")
plt.savefig("logistic_regression.png", dpi=120)
