"""Mini-batches: unbiased with the variance of the theory, the same throughout a step, and what is recorded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import thalweg as tw
from thalweg.energies._minibatch import draw_without_replacement

NUM, SIZE = 40, 6
DATA = jax.random.normal(jax.random.key(1), (NUM, 2)) * jnp.asarray([[1.0, 3.0]]) + 0.5
POINT = jnp.asarray([0.2, -0.4])


def distance(x, z):
    return 0.5 * jnp.sum((x - z) ** 2)


def test_energy_and_gradient_of_a_batch_are_unbiased_and_vary_as_a_sample_without_replacement_does():
    energy, draws = tw.MiniBatch(distance, DATA, SIZE), 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    seen = jax.jit(jax.vmap(lambda key: jax.value_and_grad(energy.at(0.0, key))(POINT)))(keys)
    seen = np.column_stack(seen)
    each = np.column_stack(jax.vmap(jax.value_and_grad(distance), in_axes=(None, 0))(POINT, DATA))
    # Var = σ²/b · (1 − (b−1)/(n−1)), σ² over the data; 4.5 standard errors, three quantities.
    variance = each.var(axis=0) / SIZE * (1 - (SIZE - 1) / (NUM - 1))
    z = (seen.mean(axis=0) - each.mean(axis=0)) / np.sqrt(variance / draws)
    assert np.all(np.abs(z) < 4.5), z
    # The variance of a variance is about 2/draws, a little more for what is not quite normal.
    np.testing.assert_allclose(seen.var(axis=0), variance, rtol=4.5 * np.sqrt(3 / draws))
    np.testing.assert_allclose(energy(POINT), each[:, 0].mean(), rtol=1e-14)


@pytest.mark.parametrize(("num", "size"), [(9, 4), (5, 5), (3000, 2600)], ids=["some", "all", "by sorting"])
def test_a_batch_holds_different_examples_each_equally_often(num, size):
    keys = jax.random.split(jax.random.key(3), 4000 if num < 100 else 8)
    chosen = np.asarray(jax.jit(jax.vmap(lambda key: draw_without_replacement(key, num, size)))(keys))
    assert all(len(set(batch)) == size for batch in chosen)
    assert chosen.min() >= 0
    assert chosen.max() == num - 1
    share = np.bincount(chosen.ravel(), minlength=num) / len(keys)
    # Each example is in a batch with probability b/n; 4.5 standard errors.
    spread = np.sqrt(size / num * (1 - size / num) / len(keys))
    assert np.max(np.abs(share - size / num)) <= 4.5 * spread


def test_a_path_records_the_energy_of_all_data_and_holds_none_of_them():
    energy = tw.MiniBatch(distance, DATA, SIZE)
    options = {"geometry": tw.Euclidean(), "scheme": tw.Explicit(0.1), "num_steps": 6}
    path = tw.flow(energy, POINT, key=jax.random.key(0), **options)
    whole = [0.5 * np.mean(np.sum((np.asarray(x) - np.asarray(DATA)) ** 2, axis=1)) for x in path.states]
    np.testing.assert_allclose(path.energies, whole, rtol=1e-13)
    rates = [np.sum((np.asarray(x) - np.asarray(DATA).mean(axis=0)) ** 2) for x in path.states]
    np.testing.assert_allclose(path.dissipation_rates, rates, rtol=1e-12)
    # Each step went towards the mean of *its* batch.
    centres = np.diff(path.states, axis=0) / 0.1 + np.asarray(path.states)[:-1]
    assert np.all(np.abs(centres - np.asarray(DATA).mean(axis=0)[None]).max(axis=1) > 1e-3)
    assert len(np.unique(centres[:, 0])) == 6
    # Saves hold two numbers of state and some scalars, not 80 numbers of data.
    assert path.stats["save_bytes"] / 8 < 8 * (2 + 6)
    other = tw.flow(energy, POINT, key=jax.random.key(1), **options)
    assert not np.any(other.states[1:] == path.states[1:])


def test_a_step_sees_one_batch_throughout():
    # A proximal step solves for the minimum over its batch: (x + α c)/(1 + α) with c the batch's centre. Had the
    # solver seen other batches on the way, it would not be the mean of two examples.
    data = jnp.asarray([[0.0], [1.0], [10.0], [100.0]])
    energy = tw.MiniBatch(distance, data, 2)
    path = tw.flow(
        energy, jnp.zeros(1), geometry=tw.Euclidean(), scheme=tw.Proximal(1.0), num_steps=8, key=jax.random.key(2)
    )
    centres = 2 * np.asarray(path.states)[1:, 0] - np.asarray(path.states)[:-1, 0]
    pairs = np.asarray([0.5, 5.0, 50.0, 5.5, 50.5, 55.0])
    assert np.max(np.min(np.abs(centres[:, None] - pairs[None]), axis=1)) < 1e-6, centres


def test_descent_on_batches_with_falling_steps_and_momentum_reaches_the_minimum_of_all_data():
    inputs = jax.random.normal(jax.random.key(4), (200, 3))
    outputs = inputs @ jnp.asarray([1.0, -2.0, 0.5]) + 0.3 * jax.random.normal(jax.random.key(5), (200,))
    energy = tw.MiniBatch(lambda x, z: 0.5 * (z["in"] @ x - z["out"]) ** 2, {"in": inputs, "out": outputs}, 10)
    scheme = tw.Explicit(lambda count: 0.5 / (10.0 + count), transform=optax.trace(0.9))
    path = tw.flow(
        energy,
        jnp.zeros(3),
        geometry=tw.Euclidean(),
        scheme=scheme,
        num_steps=3000,
        save_every=3000,
        key=jax.random.key(6),
    )
    best = jnp.linalg.lstsq(inputs, outputs)[0]
    # Steps of 0.5/k with momentum 0.9 count tenfold: the variance is about (5/k)/2 · Var, Var = 0.3²/10: 0.003².
    assert float(jnp.max(jnp.abs(path.final.state - best))) < 5 * 0.003


def test_many_examples_are_looked_at_in_blocks_with_the_same_result():
    data = jnp.linspace(-1.0, 1.0, 9001)[:, None] * jnp.asarray([[1.0, 2.0]])
    energy = tw.MiniBatch(lambda x, z: jnp.sum((x - z) ** 4), data, 5)
    value, gradient = jax.jit(jax.value_and_grad(energy))(POINT)
    expected = np.mean(np.sum((np.asarray(POINT)[None] - np.asarray(data)) ** 4, axis=1))
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    np.testing.assert_allclose(
        gradient, np.mean(4 * (np.asarray(POINT)[None] - np.asarray(data)) ** 3, axis=0), rtol=1e-12
    )


@pytest.mark.parametrize("run", [tw.flow, tw.rollout], ids=["flow", "rollout"])
def test_without_a_key_it_says_so_before_it_runs(run):
    batches = tw.MiniBatch(distance, DATA, SIZE)
    for energy in (batches, batches + 0.1 * tw.MiniBatch(distance, DATA, 3)):
        with pytest.raises(ValueError, match="needs a `key`"):
            run(energy, POINT, geometry=tw.Euclidean(), scheme=tw.Explicit(0.1), num_steps=1)
    with pytest.raises(ValueError, match="needs a `key`"):
        batches.at(0.0, None)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: tw.MiniBatch(distance, DATA, NUM + 1), "between 1 and the number of examples, 40; got 41"),
        (lambda: tw.MiniBatch(distance, DATA, 0), "between 1 and"),
        (lambda: tw.MiniBatch(distance, {"a": DATA, "b": DATA[1:]}, 2), "one leading axis"),
        (lambda: tw.MiniBatch(distance, jnp.zeros(()), 1), "one leading axis"),
        (lambda: tw.MiniBatch(distance, [], 1), "one leading axis"),
        (lambda: tw.MiniBatch(distance, ["text"], 1), "arrays of numbers"),
        (lambda: tw.MiniBatch(lambda x, z: x - z, DATA, 2)(POINT), "one number"),
    ],
    ids=["too large", "empty batch", "lengths", "scalar", "nothing", "text", "not a scalar"],
)
def test_what_is_no_data_is_named(make, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        make()
    assert len(str(caught.value).splitlines()) <= 5
