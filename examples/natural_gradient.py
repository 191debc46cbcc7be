"""A nonlinear regression with certified answers (NIST), by natural gradient: ten steps, ten digits."""

import jax
import matplotlib.pyplot as plt

import thalweg as tw

jax.config.update("jax_enable_x64", True)

problem = tw.problems.get("misra1a")
path = tw.fit(problem.model, problem.inputs, problem.outputs, problem.starts[0])
fitted = path.final.state.params
print(path.message)
print("fitted   ", fitted)
print("certified", problem.certified_params)
print("log relative error", float(problem.log_relative_error(fitted)))

fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
left.plot(problem.inputs, problem.outputs, "o", markersize=4, label="data")
left.plot(problem.inputs, problem.model(fitted, problem.inputs), "-", label="fitted")
left.set(xlabel="pressure (psi)", ylabel="volume", title=f"NIST {problem.name}")
left.legend()
right.semilogy(path.dissipation_rates, "o-", markersize=4)
right.set(xlabel="step", ylabel=r"$\|\nabla F\|^2_*$ in the Fisher metric", title="Quadratic at the end")
fig.savefig("natural_gradient.png", dpi=120)
