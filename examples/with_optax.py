"""Geometries inside optax: a two-layer network by the spectral norm (Muon), the maximum norm (sign) and Adam."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import thalweg as tw

keys = jax.random.split(jax.random.key(0), 4)
inputs = jax.random.normal(keys[0], (512, 16)) * jnp.geomspace(1.0, 0.05, 16)
outputs = jnp.tanh(inputs @ jax.random.normal(keys[1], (16, 32))) @ jax.random.normal(keys[2], (32, 4))
params = {"in": 0.3 * jax.random.normal(keys[3], (16, 32)), "out": jnp.zeros((32, 4))}


def loss(params):
    return jnp.mean((jnp.tanh(inputs @ params["in"]) @ params["out"] - outputs) ** 2)


momentum, schedule = optax.trace(0.9, nesterov=True), optax.linear_schedule(0.1, 0.0, 400)
layers = tw.MaxProduct({"in": tw.SpectralNorm(), "out": tw.SpectralNorm()})  # each layer by its own polar factor
muon = optax.chain(momentum, tw.scale_by_unit_ball(layers), optax.scale_by_learning_rate(schedule))
small = optax.linear_schedule(0.01, 0.0, 400)
sign = optax.chain(momentum, tw.scale_by_unit_ball(tw.MaxNorm()), optax.scale_by_learning_rate(small))
adam = optax.adam(optax.linear_schedule(0.03, 0.0, 400))
for name, optimiser in {"spectral norm (Muon)": muon, "maximum norm (sign)": sign, "Adam": adam}.items():

    def step(carry, _, optimiser=optimiser):
        value, gradient = jax.value_and_grad(loss)(carry[0])
        updates, state = optimiser.update(gradient, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), value

    plt.semilogy(jax.lax.scan(step, (params, optimiser.init(params)), length=400)[1], label=name)
plt.gca().set(xlabel="step", ylabel="mean squared error", title="One chain of optax, three geometries")
plt.legend()
plt.savefig("with_optax.png", dpi=120)
