"""The lasso path: least squares plus a penalty with corners; as its weight falls, coefficients leave zero in turn."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

keys = jax.random.split(jax.random.key(1), 3)
inputs = jax.random.normal(keys[0], (60, 20)) + jax.random.normal(keys[1], (60, 1))  # correlated columns
truth = jnp.zeros(20).at[jnp.array([2, 7, 11, 15])].set(jnp.array([2.0, -1.5, 1.0, 0.5]))
outputs = inputs @ truth + 0.5 * jax.random.normal(keys[2], (60,))


def misfit(x):
    return 0.5 * jnp.mean((inputs @ x - outputs) ** 2)


largest = jnp.max(jnp.abs(jax.grad(misfit)(jnp.zeros(20))))  # from this weight on, all are zero
weights = largest * jnp.geomspace(1.0, 1e-3, 40)
x, points = jnp.zeros(20), []
choices = {"geometry": tw.Euclidean(), "scheme": tw.ProximalNewton()}
for weight in weights:
    path = tw.flow(misfit + tw.L1(weight), x, **choices, num_steps=50, stop=tw.ResidualBelow(1e-10))
    x = path.final.state  # the next one begins here
    points.append(x)
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for index, line in enumerate(jnp.stack(points).T):
    ax.semilogx(weights, line, **({"label": f"$x_{{{index}}}$"} if truth[index] else {"color": "0.75", "zorder": 0}))
ax.set_prop_cycle(None)
for value in truth[truth != 0]:
    ax.axhline(value, linestyle=":", linewidth=1, color="0.4")
ax.invert_xaxis()
ax.set(xlabel="weight of the penalty", ylabel="coefficient", title="The lasso path")
ax.legend(ncols=2, fontsize=8)
fig.savefig("lasso.png", dpi=120)
