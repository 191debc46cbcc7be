"""Nine divergences relax from one start to one target, by transport, by growth, and by both."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import thalweg as tw
from thalweg import generators as f

jax.config.update("jax_enable_x64", True)

grid = tw.Grid(-4.0, 4.0, 48)
bumps = lambda x: jnp.exp(-2 * (x[0] + 1.5) ** 2) + 0.6 * jnp.exp(-4 * (x[0] - 1.2) ** 2) + 0.05  # noqa: E731
target = tw.GridDensity.from_function(bumps, grid)
start = tw.GridDensity.from_function(lambda x: jnp.exp(-3 * (x[0] - 2.0) ** 2) + 0.05, grid)
divergences = {
    "reverse KL": f.reverse_kl, "forward KL": f.forward_kl, "Pearson $\\chi^2$": f.pearson_chi2,
    "Neyman $\\chi^2$": f.neyman_chi2, "Hellinger$^2$": f.squared_hellinger, "Jensen–Shannon": f.jensen_shannon,
    "Jeffreys": f.jeffreys, "$\\alpha = -0.5$": f.alpha(-0.5), "$\\alpha = 1.5$": f.alpha(1.5),
}  # fmt: skip
geometries = {
    "Wasserstein": tw.Wasserstein(),
    "Fisher–Rao": tw.FisherRao(),
    "Hellinger–Kantorovich": tw.HellingerKantorovich(conserve_mass=True),
}
fig, axes = plt.subplots(9, 3, figsize=(8, 12), layout="constrained", sharex=True, sharey=True)
for row, (name, generator) in zip(axes, divergences.items(), strict=True):
    for ax, (where, geometry) in zip(row, geometries.items(), strict=True):
        energy, scheme = tw.FDivergence(generator, target), tw.Explicit(2.5e-5)  # small: Pearson's mobility is 2 (p/q)²
        path = tw.flow(energy, start, geometry=geometry, scheme=scheme, num_steps=40_000, save_every=5000)
        x = grid.centres[:, 0]
        ax.fill_between(x, target.values, color="0.85", label="target")
        for index, colour in zip((0, 1, 2, 4, 8), plt.get_cmap("viridis")(jnp.linspace(0, 0.9, 5)), strict=True):
            ax.plot(x, path.states.values[index], color=colour, lw=1.2, label=f"t = {float(path.times[index]):g}")
        ax.set(title=where if name == "reverse KL" else None, ylim=(0, 1.05))
    row[0].set_ylabel(name)
fig.supxlabel("$x$")
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
fig.savefig("nine_divergences.png", dpi=120)
