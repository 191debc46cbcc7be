"""Every family: its root of the Fisher matrix is that of the definition, and both are the covariance of the score."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as special

import thalweg as tw
from thalweg.likelihoods import hessian_of_divergence

L = tw.likelihoods


def arrays(tree):
    return jax.tree.map(jnp.asarray, tree, is_leaf=lambda leaf: isinstance(leaf, list))


COVARIANCE = [[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.5]]
FULL = L.MultivariateNormal.params_of(jnp.asarray([0.3, -0.2, 1.0]), jnp.asarray(COVARIANCE))

# Values and weights that integrate a density over its support to rounding: sums, and trapezoidal rules in a variable
# in which the density dies out doubly exponentially or like a Gaussian.
REAL = np.arange(-6.5, 6.5, 0.01)


def on_the_line():
    return np.sinh(np.sinh(REAL)), np.cosh(np.sinh(REAL)) * np.cosh(REAL) * 0.01


def on_the_half_line():
    # Towards zero a density may blow up like a power: y = exp(x − e^−x) is dense there.
    x = np.arange(-5.0, 9.0, 0.01)
    y = np.exp(x - np.exp(-x))
    return y, y * (1 + np.exp(-x)) * 0.01


def on_the_interval():
    x = np.arange(-4.2, 4.2, 0.01)
    y = special.expit(np.pi * np.sinh(x))
    return y, y * special.expit(-np.pi * np.sinh(x)) * np.pi * np.cosh(x) * 0.01


def on_the_circle():
    return np.linspace(-np.pi, np.pi, 400, endpoint=False), np.full(400, 2 * np.pi / 400)


def counts(most=4000):
    return np.arange(float(most)), np.ones(most)


def corners():
    # The score of Laplace's density jumps at its location: a rule on either side.
    y, w = on_the_half_line()
    return np.concatenate([-y[::-1], y]), np.concatenate([w[::-1], w])


# A family, two members (one a hard one), and a rule over its values.
FAMILIES = {
    "normal": (L.Normal(0.7), [0.3, -40.0], None),
    "normal mean scale": (L.NormalMeanScale(), {"mean": [0.3, 1.0], "log_scale": [-0.4, 0.7]}, on_the_line),
    "lognormal": (L.LogNormal(), {"mean": [0.3, 1.0], "log_scale": [-0.4, -0.2]}, on_the_half_line),
    "full normal": (L.MultivariateNormal(), FULL, None),
    "bernoulli": (L.Bernoulli(), [0.3, -60.0], lambda: counts(2)),
    "binomial": (L.Binomial(5), [0.3, -20.0], lambda: counts(6)),
    "categorical": (L.Categorical(), [[0.3, -1.0, 0.5], [2.0, 0.0, -30.0]], lambda: counts(3)),
    "poisson": (L.Poisson(), [0.3, 5.0], lambda: counts(600)),
    "geometric": (L.Geometric(), [0.3, -4.0], counts),
    "negative binomial": (L.NegativeBinomial(), {"log_mean": [0.3, 3.0], "log_dispersion": [-0.9, 1.0]}, counts),
    "exponential": (L.Exponential(), [0.3, -1.0], on_the_half_line),
    "gamma": (L.Gamma(), {"log_mean": [0.3, 1.0], "log_shape": [-0.9, 3.0]}, on_the_half_line),
    "beta": (L.Beta(), {"log_alpha": [-0.9, 3.0], "log_beta": [0.3, 1.0]}, on_the_interval),
    "dirichlet": (L.Dirichlet(), [[0.3, -1.0, 2.5], [4.0, 4.4, 5.0]], None),
    "von mises": (L.VonMises(), [[0.3, -1.0], [0.0, 0.0], [9.0, 14.0], [40.0, -30.0]], on_the_circle),
    "cauchy": (L.StudentT(1.0), {"location": [0.3, 1.0], "log_scale": [-0.9, 2.0]}, on_the_line),
    "student t": (L.StudentT(6.5), {"location": [0.3, 1.0], "log_scale": [-0.9, 2.0]}, on_the_line),
    "laplace": (L.Laplace(), {"location": [0.0, 0.0], "log_scale": [-0.9, 0.5]}, corners),
}
ALL = list(FAMILIES)
SUMMED = [name for name, (_, _, rule) in FAMILIES.items() if rule is not None]


@pytest.mark.parametrize("name", ALL)
def test_the_root_and_the_hessian_of_the_divergence_agree(name):
    family, params, _ = FAMILIES[name]
    params = arrays(params)
    both = jax.jit(lambda p: (family.fisher_factor(p), hessian_of_divergence(family, p)))
    factor, hessian = jax.tree.map(np.asarray, both(params))
    # Entry by entry in the scale of the diagonal, so that a nearly certain coin counts as much as a fair one. The
    # Hessian in natural coordinates loses κ·ε (von Mises at κ = 50) and α·ε (Dirichlet at α = 150).
    scale = np.sqrt(np.diagonal(hessian))
    np.testing.assert_allclose(
        (factor.T @ factor) / np.outer(scale, scale), hessian / np.outer(scale, scale), atol=1e-11
    )


@pytest.mark.parametrize("name", SUMMED)
def test_the_fisher_matrix_is_the_covariance_of_the_score(name):
    family, params, rule = FAMILIES[name]
    params = arrays(params)
    values, weights = rule()
    one = jax.tree.map(lambda leaf: leaf[-1], params)
    density = jax.jit(jax.vmap(jax.value_and_grad(family.log_density), (None, 0)))
    logs, scores = jax.tree.map(np.asarray, density(one, values))
    scores = np.concatenate([leaf.reshape(values.size, -1) for leaf in jax.tree.leaves(scores)], 1)
    # Where the density has underflowed, a score may be infinite; its share is zero.
    mass = np.where(np.isfinite(logs) & np.all(np.isfinite(scores), 1), np.exp(logs) * weights, 0)
    scores = np.where(mass[:, None] > 0, scores, 0)
    np.testing.assert_allclose(np.sum(mass), 1, rtol=1e-11)
    covariance = (scores * mass[:, None]).T @ scores
    factor = np.asarray(jax.jit(family.fisher_factor)(one))
    expected = factor.T @ factor
    scale = np.sqrt(np.diagonal(expected))
    np.testing.assert_allclose(covariance / np.outer(scale, scale), expected / np.outer(scale, scale), atol=1e-10)


def test_the_dirichlet_and_the_full_normal_match_their_closed_forms():
    log_alpha = jnp.asarray([0.3, -1.0, 2.5])
    alpha = np.exp(log_alpha)
    in_alpha = np.diag(special.polygamma(1, alpha)) - special.polygamma(1, alpha.sum())
    np.testing.assert_allclose(L.Dirichlet().fisher(log_alpha), np.outer(alpha, alpha) * in_alpha, rtol=1e-11)

    # dμᵀ Λ dμ + ½ tr(Σ dΛ Σ dΛ) for a random change of the parameters
    family, change = L.MultivariateNormal(), {"mean": [0.2, 0.5, -1.0], "log_diagonal": [0.3, 0.1, -0.4]}
    change = arrays({**change, "lower": [0.7, -0.2, 0.9]})
    precision = lambda p: jnp.linalg.inv(family.covariance(p))  # noqa: E731
    value, moved = jax.jvp(precision, (FULL,), (change,))
    np.testing.assert_allclose(value, np.linalg.inv(COVARIANCE), rtol=1e-12)
    expected = change["mean"] @ value @ change["mean"] + 0.5 * np.trace(
        np.linalg.solve(value, moved) @ np.linalg.solve(value, moved)
    )
    np.testing.assert_allclose(jnp.sum(family.whiten(FULL, change) ** 2), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["gamma", "beta", "von mises", "student t", "negative binomial"])
def test_the_divergence_is_the_mean_of_the_log_ratio(name):
    family, params, rule = FAMILIES[name]
    one = jax.tree.map(lambda leaf: leaf[0], arrays(params))
    other = jax.tree.map(lambda leaf: leaf + jnp.asarray([0.6, -0.3, 0.2][: leaf.size]).reshape(leaf.shape), one)
    values, weights = rule()
    log_density = jax.jit(jax.vmap(family.log_density, (None, 0)))
    here, there = np.asarray(log_density(one, values)), np.asarray(log_density(other, values))
    known = np.isfinite(here) & np.isfinite(there)
    mass = np.exp(here[known]) * weights[known]
    integrand = mass * (here[known] - there[known])
    np.testing.assert_allclose(jax.jit(family.kl)(one, other), np.sum(integrand), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dof", [1.0, 200.0], ids=str)
def test_student_t_diverges_as_it_should_however_far_apart_its_members_are(dof):
    family = L.StudentT(dof)
    for shift, change in itertools.product([0.0, 30.0], [-4.0, 4.0]):
        params = {"location": jnp.asarray(0.0), "log_scale": jnp.asarray(0.0)}
        other = {"location": jnp.asarray(shift), "log_scale": jnp.asarray(change)}
        if dof == 1.0:
            # Two Cauchy members have a closed form (Chyzak, Nielsen, 2019).
            s = np.exp(change)
            expected = np.log(((1 + s) ** 2 + shift**2) / (4 * s))
        else:
            y, w = on_the_line()
            density = jax.jit(jax.vmap(family.log_density, (None, 0)))
            here, there = np.asarray(density(params, y)), np.asarray(density(other, y))
            expected = np.sum(np.where(here > -700, np.exp(here) * w * (here - there), 0))
        # The plain rule along the line, with 1300 nodes, loses digits at the narrow member; the tilted one does not.
        np.testing.assert_allclose(family.kl(params, other), expected, rtol=1e-11 if dof == 1.0 else 1e-6)


def test_sharply_concentrated_members_keep_their_digits():
    # Closed-form limits: A' → 1/2κ² (1 + 1/2κ + …), a²(ψ₁(a) − 1/a) → 1/2 (1 + 1/3a).
    kappa = 1e7
    family, params = L.VonMises(), jnp.asarray([[kappa, 0.0]])
    factor = family.fisher_factor(params)
    np.testing.assert_allclose(
        np.diagonal(factor.T @ factor), [0.5 / kappa**2 * (1 + 0.5 / kappa), (1 - 0.5 / kappa) / kappa], rtol=1e-13
    )
    turned = jnp.asarray([[kappa * np.cos(1e-4), kappa * np.sin(1e-4)]])
    # κ A (1 − cos Δ)
    np.testing.assert_allclose(family.kl(params, turned), (kappa - 0.5) * 2 * np.sin(5e-5) ** 2, rtol=1e-9)
    shape = 1e7
    gamma, at = L.Gamma(), {"log_mean": jnp.asarray(0.0), "log_shape": jnp.asarray(np.log(shape))}
    factor = gamma.fisher_factor(at)
    np.testing.assert_allclose(np.diagonal(factor.T @ factor), [shape, 0.5 * (1 + 1 / (3 * shape))], rtol=1e-12)
    # log r of nearly Poisson counts: m²/2r² to leading order
    factor = L.NegativeBinomial().fisher_factor(
        {"log_mean": jnp.asarray(0.0), "log_dispersion": jnp.asarray(np.log(1e3))}
    )
    np.testing.assert_allclose((factor.T @ factor)[0, 0], 0.5e-6, rtol=5e-3)


WRONG = {
    "negative count": (L.Poisson(), jnp.zeros(3), np.array([1, -2, 0]), "-2 at index 1"),
    "half a coin": (L.Bernoulli(), jnp.zeros(2), np.array([0.0, 0.5]), "0.5 at index 1"),
    "class out of range": (L.Categorical(), jnp.zeros((2, 3)), np.array([1, 3]), "3 at index 1"),
    "proportion of one": (
        L.Beta(),
        arrays({"log_alpha": [0.0], "log_beta": [0.0]}),
        np.array([1.0]),
        "strictly between",
    ),
    "not proportions": (L.Dirichlet(), jnp.zeros((1, 2)), np.array([[0.5, 0.6]]), "sum to 1"),
    "nan": (L.Normal(), jnp.zeros(2), np.array([0.0, np.nan]), "nan at index 1"),
    "wrong shape": (L.Poisson(), jnp.zeros(3), np.zeros((3, 1)), r"\(3,\); got \(3, 1\)"),
    "wrong names": (L.Gamma(), {"mean": jnp.zeros(1)}, np.ones(1), "log_mean"),
    "too many heads": (L.Binomial(3), jnp.zeros(1), np.array([4]), "`trials`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_observations_that_cannot_be_are_named_before_compilation(name):
    family, params, outputs, words = WRONG[name]
    state = tw.Parametric(params, family)
    with pytest.raises(ValueError, match=words) as caught:
        tw.flow(tw.NegativeLogLikelihood(outputs), state, geometry=tw.FisherRao(), scheme=tw.Explicit(1.0), num_steps=1)
    assert len(str(caught.value).splitlines()) <= 5


def test_a_model_whose_outputs_do_not_match_is_named():
    with pytest.raises(ValueError, match=r"\(4, 1\).*got \(4,\)"):
        tw.fit(lambda p, x: x @ p, jnp.ones((4, 2)), jnp.ones(4), jnp.zeros((2, 1)))
    with pytest.raises(ValueError, match="-1 at index 2"):
        tw.fit(lambda p, x: x @ p, jnp.ones((3, 2)), np.array([0, 1, -1]), jnp.zeros(2), likelihood=L.Poisson())
