"""A physics-informed network: Poisson's equation in a square, its residual brought to zero by natural gradient."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

axis = jnp.linspace(0.0, 1.0, 14)
points = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
inside = jnp.all((points > 0) & (points < 1), axis=1)
keys = jax.random.split(jax.random.key(0), 3)
params = [0.1 * jax.random.normal(key, shape) for key, shape in zip(keys, [(16, 2), (16,), (16,)], strict=True)]
exact = jnp.prod(jnp.sin(jnp.pi * points), axis=1)


def network(params, x):
    return params[2] @ jnp.tanh(params[0] @ x + params[1])


def residual(params, x, inside, exact):  # -Δu = 2π² u* inside, u = 0 on the boundary
    hidden = jnp.tanh(params[0] @ x + params[1])
    laplacian = params[2] @ (jnp.sum(params[0] ** 2, axis=1) * -2 * hidden * (1 - hidden**2))
    return jnp.where(inside, (laplacian + 2 * jnp.pi**2 * exact) / 12, network(params, x))


rows = jax.vmap(residual, (None, 0, 0, 0))
zeros = jnp.zeros(len(points))
path = tw.fit(lambda p, inputs: rows(p, *inputs), (points, inside, exact), zeros, params, num_steps=100)
found = jax.vmap(network, (None, 0))(path.final.state.params, points)
print(path.message, "Largest error:", float(jnp.max(jnp.abs(found - exact))))
fig, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
axes[0].semilogy(path.energies)  # ½ Σ residual², step by step
for panel, values, title in zip(axes[1:], (found, jnp.abs(found - exact)), ("u", "|u − u*|"), strict=True):
    fig.colorbar(panel.imshow(values.reshape(14, 14).T, origin="lower", extent=(0, 1, 0, 1)), ax=panel)
    panel.set(title=title)
fig.savefig("physics_informed.png", dpi=120)
