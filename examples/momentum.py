"""Accelerated descent as a flow: the energy may rise on the way, the total energy falls."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

curvatures = jnp.geomspace(1e-4, 1.0, 20)
start = jnp.ones(20)


def bowl(x):
    return 0.5 * jnp.sum(curvatures * x**2)


schemes = {
    "gradient flow": tw.Continuous(4.0),
    "Nesterov, γ = 3/t": tw.Momentum(0.5),
    "Nesterov, restarted": tw.Momentum(0.5, restart=tw.GradientRestart()),
    "heavy ball, γ = 2√μ": tw.Momentum(0.5, tw.ConstantDamping.critical(1e-4)),
}
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for name, scheme in schemes.items():
    path = tw.flow(bowl, start, geometry=tw.Euclidean(), scheme=scheme, final_time=1500.0)
    left.loglog(path.times[1:], path.energies[1:], linewidth=1.2, label=name)
    if name.startswith("heavy"):
        total = path.energies + path.measurements["kinetic"]
        right.semilogy(path.times, path.energies, linewidth=1, label="energy")
        right.semilogy(path.times, total, "k--", linewidth=1, label="energy + kinetic energy")
left.set(xlabel="time", ylabel="energy", title="Condition number 10⁴")
left.legend(fontsize=8)
right.set(xlabel="time", title="Heavy ball: what falls is the sum")
right.legend(fontsize=8)
fig.savefig("momentum.png", dpi=120)
