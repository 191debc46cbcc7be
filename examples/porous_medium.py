"""A gas in a porous medium: the front moves at finite speed, and Barenblatt's profile is met."""

import jax
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

problem = tw.problems.get("barenblatt")
shape = 200
q0 = problem.initial_state(shape)
scheme = tw.Continuous(step_size=problem.final_time / 4)
path = tw.flow(problem.energy(), q0, geometry=tw.Wasserstein(), scheme=scheme, final_time=problem.final_time)

x = q0.grid.centres[:, 0]
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
for index, time in enumerate(path.times):
    ax.plot(x, path.states.values[index], color=plt.cm.viridis(index / len(path)), label=f"t = {float(time):.3f}")
    ax.plot(x, problem.cell_averages(float(time), shape), "k:", linewidth=1)
error = abs(path.final.state.values - problem.cell_averages(problem.final_time, shape)).sum() * q0.grid.cell_volume
ax.set(xlabel="$x$", ylabel="density", title=f"Porous medium against Barenblatt (dotted), L1 error {float(error):.1e}")
ax.legend()
fig.savefig("porous_medium.png", dpi=120)
