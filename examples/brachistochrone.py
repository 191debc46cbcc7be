"""The brachistochrone: a wire bends itself into the cycloid, on which a bead slides down fastest."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)
gravity, depth = 9.81, 0.6

# y(x) is how far the wire lies below the start; the bead at depth y has the speed √(2gy). From (0, 0) to (1, depth).
time = tw.IntegralFunctional(lambda x, y, slope: jnp.sqrt((1 + slope**2) / (2 * gravity * y)))
ends = (tw.Dirichlet(0.0), tw.Dirichlet(depth))
straight = tw.GridFunction.from_function(lambda x: depth * x, tw.Grid(0.0, 1.0, 64), ends)
path = tw.flow(time, straight, geometry=tw.Sobolev(), scheme=tw.Explicit(tw.Backtracking(1.0)), num_steps=100)

# The cycloid x = r(a − sin a), y = r(1 − cos a) through the end.
low, high = 0.1, 6.0
for _ in range(60):
    last = (low + high) / 2
    low, high = (last, high) if (last - jnp.sin(last)) / (1 - jnp.cos(last)) < 1 / depth else (low, last)
radius, angle = depth / (1 - jnp.cos(last)), jnp.linspace(0, last, 200)
best = last * jnp.sqrt(radius / gravity)
print("time of descent:", float(path.energies[0]), "→", float(path.energies[-1]), " cycloid:", float(best))
print(tw.stationary_point(time, path.final.state, geometry=tw.Sobolev()).kind)

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
x = path.final.state.nodes[:, 0]
for save in (0, 1, 2, 4, 8, 100):
    ax.plot(x, -path.states.nodal_values[save], color=plt.cm.viridis(min(save, 10) / 11), label=f"step {save}")
ax.plot(radius * (angle - jnp.sin(angle)), -radius * (1 - jnp.cos(angle)), "k:", linewidth=2, label="cycloid")
ax.set(xlabel="$x$", ylabel="height", title="The quickest way down")
ax.legend()
fig.savefig("brachistochrone.png", dpi=120)
