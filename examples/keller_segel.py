"""Keller–Segel below and above the critical mass: cells spread, or gather in one point in finite time, said by name."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

grid = tw.Grid((-2.0, -2.0), (2.0, 2.0), (64, 64))
q0 = tw.GridDensity.from_function(lambda x: jnp.exp(-jnp.sum(x**2) / 0.2), grid)
square = jnp.sum(grid.centres**2, axis=-1)
measure = lambda q: {"peak": q.values.max(), "moment": jnp.sum(square * q.values) * grid.cell_volume}  # noqa: E731
choices = {"geometry": tw.Wasserstein(), "scheme": tw.Continuous(0.01), "measure": measure, "throw": False}

fig, axes = plt.subplots(2, 4, figsize=(12.5, 5.8), layout="constrained", width_ratios=(1, 1, 1, 1.3))
fig.suptitle("Keller–Segel below (top) and above (bottom) the critical mass")
for row, factor in zip(axes, (0.5, 1.5), strict=True):
    chi = jnp.array(factor * 8 * jnp.pi)  # as an array: another value needs no new compilation
    energy = tw.Entropy() - chi * tw.InteractionEnergy(tw.kernels.newtonian(2))
    path = tw.flow(energy, q0, final_time=0.15, **choices)
    print(f"chi = {factor} * 8 pi: t = {float(path.times[-1]):.3f}, {path.message}")
    for ax, k in zip(row, (0, len(path) // 2, -1), strict=False):
        image = ax.imshow(jnp.log10(path.states.values[k]).T, vmin=-4, vmax=2, extent=(-2, 2, -2, 2))
        ax.set(title=f"$\\chi$ = {factor} · 8π, t = {float(path.times[k]):.2f}", xlabel="$x_1$", ylabel="$x_2$")
    row[3].plot(path.times, path.measurements["moment"], label="second moment")
    row[3].plot(path.times, 0.2 + 4 * (1 - factor) * path.times, "k:", label="the same on the whole plane")
    ended = "concentrated" if path.result == tw.RESULTS.concentrated else "at the final time"
    row[3].set(xlabel="time", xticks=(0, 0.05, 0.1, 0.15), ylim=(0, 0.65), ylabel="second moment")
    row[3].set(title=f"ended: {ended}", xlim=(0, 0.16))
    peak = row[3].twinx()
    peak.semilogy(path.times, path.measurements["peak"], "C1--")
    peak.set(ylim=(0.3, 600))
    peak.set_ylabel("peak density (dashed)", color="C1")
    row[3].legend(fontsize=8, loc="upper center")
fig.colorbar(image, ax=axes[:, 2], label="log$_{10}$ density")
fig.savefig("keller_segel.png", dpi=120)
