"""Gradient descent, normalised descent and the gradient flow itself, on Rosenbrock's valley."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


start, plane = jnp.array([-1.0, 1.5]), tw.Euclidean()
paths = {
    "gradient descent": tw.flow(rosenbrock, start, geometry=plane, scheme=tw.Explicit(1e-3), num_steps=20000),
    "normalised": tw.flow(rosenbrock, start, geometry=plane, scheme=tw.Constrained(0.01), num_steps=400),
    "proximal": tw.flow(rosenbrock, start, geometry=plane, scheme=tw.Proximal(0.5), num_steps=40),
    "gradient flow": tw.flow(rosenbrock, start, geometry=plane, scheme=tw.Continuous(0.1), final_time=20.0),
}
flow = paths["gradient flow"]
print(flow.stats["solver"])  # the flow is stiff, so an implicit solver was chosen
print(flow.final.state, flow.energy_balance())

x, y = jnp.meshgrid(jnp.linspace(-1.3, 1.3, 200), jnp.linspace(-0.3, 1.7, 200))
levels = jax.vmap(jax.vmap(rosenbrock))(jnp.stack([x, y], axis=-1))
fig, ax = plt.subplots(figsize=(6, 4.5), layout="constrained")
ax.contour(x, y, jnp.log10(levels), levels=20, colors="0.8", linewidths=0.6)
for name, path in paths.items():
    ax.plot(path.states[:, 0], path.states[:, 1], ".-", markersize=3, linewidth=1, label=name)
ax.plot(1, 1, "k*", markersize=10, label="minimum")
ax.set(xlabel="$x_1$", ylabel="$x_2$", title="Four ways down one valley")
ax.legend(loc="upper center", fontsize=8)
fig.savefig("gradient_flow.png", dpi=120)
