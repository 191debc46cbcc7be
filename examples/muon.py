"""Muon, without momentum, is steepest descent: spectral norms on matrices, maximum norms on vectors, maximum of all."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

keys = jax.random.split(jax.random.key(0), 5)
inputs = jax.random.normal(keys[0], (256, 8))
sizes = [(32, 8), (32, 32), (1, 32)]
params = [(jax.random.normal(k, s) / s[1] ** 0.5, jnp.zeros(s[0])) for k, s in zip(keys[1:4], sizes, strict=True)]
outputs = jnp.sin(2 * inputs[:, 0]) * inputs[:, 1] + 0.5 * jnp.cos(3 * inputs[:, 2])


def loss(params):
    x = inputs.T
    for weights, bias in params[:-1]:
        x = jnp.tanh(weights @ x + bias[:, None])
    return jnp.mean(((params[-1][0] @ x)[0] + params[-1][1] - outputs) ** 2)


polar = tw.NewtonSchulz(num_steps=10)
norms = jax.tree.map(lambda leaf: tw.SpectralNorm(polar) if leaf.ndim == 2 else tw.MaxNorm(), params)
geometries = {"spectral on matrices (Muon)": tw.MaxProduct(norms), "Euclidean": tw.Euclidean()}
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for name, geometry in geometries.items():
    schemes = [tw.Constrained(radius) for radius in (0.1, 0.03, 0.01, 0.003)]
    runs = [tw.flow(loss, params, geometry=geometry, scheme=s, num_steps=400, save_every=10) for s in schemes]
    best, scheme = min(zip(runs, schemes, strict=True), key=lambda pair: float(pair[0].energies[-1]))
    ax.semilogy(best.times / scheme.radius, best.energies, label=f"{name}, radius {scheme.radius}")
ax.set(
    xlabel="step",
    ylabel="mean squared error",
    title="One network, full batches: the best radius of four in each geometry",
)
ax.legend(fontsize=8)
fig.savefig("muon.png", dpi=120)
