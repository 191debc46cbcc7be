"""A soap film on a frame: the area of a graph flows down to the minimal surface of Scherk."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)


def scherk(x):
    return jnp.log(jnp.cos(x[1]) / jnp.cos(x[0]))


area = tw.IntegralFunctional(lambda x, u, slope: jnp.sqrt(1 + jnp.sum(slope**2)))
grid = tw.Grid((-1.2, -1.2), (1.2, 1.2), (40, 40))
rough = tw.GridFunction.from_function(lambda x: jnp.sin(5 * x[0]) * jnp.cos(4 * x[1]), grid, tw.Dirichlet(scherk))
descent = tw.Explicit(tw.Backtracking(1.0))
path = tw.flow(area, rough, geometry=tw.Sobolev(), scheme=descent, num_steps=500, stop=tw.Stationary(1e-6))
error = path.final.state.nodal_values - jax.vmap(jax.vmap(scherk))(path.final.state.nodes)
print(path)
print("largest distance to Scherk's surface:", float(jnp.max(jnp.abs(error))))

fig, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", subplot_kw={"projection": "3d"})
x, y = path.final.state.nodes[..., 0], path.final.state.nodes[..., 1]
for ax, save in zip(axes, (0, 3, -1), strict=True):
    ax.plot_surface(x, y, path.states.nodal_values[save], cmap="viridis", rcount=41, ccount=41)
    ax.set(title=f"step {int(path.times.shape[0]) - 1 if save < 0 else save}", zlim=(-1.2, 1.2), xticks=[], yticks=[])
fig.savefig("minimal_surface.png", dpi=120)
