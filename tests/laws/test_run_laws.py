"""Laws of a run: where chunks end changes no number, a failure is the same whatever the chunks, nothing compiles twice,
and float32 stays float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from tests.laws import cells
from tests.laws.cells import Cell
from thalweg import _loop

_CELLS = [
    Cell("quartic", "vector", "euclidean", "continuous"),
    Cell("quartic", "vector", "euclidean", "proximal"),
    Cell("kl", "line", "wasserstein", "continuous"),
    Cell("kl", "line", "wasserstein", "jko on the line"),
    Cell("kl", "particles", "wasserstein", "langevin"),
    Cell("kl", "kernel particles", "wasserstein", "explicit"),
    Cell("kl", "gaussian", "wasserstein", "continuous"),
    Cell("likelihood of data", "regression", "fisher-rao", "backtracking"),
    Cell("mini-batch", "vector", "p norm", "momentum"),
]


def _run(cell, state=None, **options):
    energy, given, geometry, scheme = cell.parts
    options = {"num_steps": 7, "save_every": 2, "key": jax.random.key(0), **options}
    return tw.flow(energy, given if state is None else state, geometry=geometry, scheme=scheme, **options)


def _arrays(path):
    return jax.tree.leaves((path.times, path.states, path.records, path.measurements, path.final.memory))


def _nudged(leaf):
    return leaf * (1 - 1e-9) if cells.is_floating(leaf) else leaf


class _Compilations:
    """Counts what the backend compiles."""

    def __init__(self):
        self.count = 0

    def __call__(self, event, seconds, **details):
        self.count += event.endswith("backend_compile_duration")


@pytest.fixture
def compilations():
    counter = _Compilations()
    jax.monitoring.register_event_duration_secs_listener(counter)
    yield counter
    jax.monitoring.unregister_event_duration_listener(counter)


@pytest.mark.parametrize("cell", _CELLS, ids=str)
def test_chunks_change_no_number_and_nothing_compiles_twice(cell, monkeypatch, compilations):
    whole = _run(cell)
    first = compilations.count
    assert first > 0, "the counter does not count"
    monkeypatch.setattr(_loop, "next_chunk", lambda steps, elapsed: 1)
    single = _run(cell)
    assert compilations.count == first
    # Other numbers, the same shapes: still nothing new.
    other = jax.tree.map(_nudged, cells.states()[cell.state])
    first = compilations.count
    _run(cell, other)
    assert compilations.count == first
    monkeypatch.setattr(_loop, "next_chunk", lambda steps, elapsed: 1000)
    for a, b, c in zip(_arrays(whole), _arrays(single), _arrays(_run(cell)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("save_every", [1, 2])
def test_a_failure_leaves_the_same_path_whatever_the_chunks(chunk, save_every, monkeypatch):
    # x ← 4x, until the energy has no value beyond 200. Its slope goes on being finite there, as that of any logarithm
    # of a negative number is, so only the value tells.
    def energy(x):
        return -1.5 * jnp.sum(x**2) + 0 * jnp.sum(jnp.log(200 - jnp.abs(x)))

    monkeypatch.setattr(_loop, "next_chunk", lambda steps, elapsed: chunk)
    path = tw.flow(
        energy,
        jnp.ones(1),
        geometry=tw.Euclidean(),
        scheme=tw.Explicit(1.0),
        num_steps=20,
        save_every=save_every,
        throw=False,
    )
    assert path.result == tw.RESULTS.non_finite
    # The state at 256 is finite although its energy is not; each save stands once.
    assert int(path.final.num_steps) == 4
    np.testing.assert_array_equal(path.times, np.arange(0, 5, save_every))
    np.testing.assert_array_equal(path.states[:, 0], 4.0 ** np.arange(0, 5, save_every))
    assert not np.isfinite(path.energies[-1])
    # The same where the run would have ended there anyway, and in a rollout.
    options = {"geometry": tw.Euclidean(), "scheme": tw.Explicit(1.0), "num_steps": 4, "save_every": save_every}
    assert tw.flow(energy, jnp.ones(1), throw=False, **options).result == tw.RESULTS.non_finite
    assert tw.rollout(energy, jnp.ones(1), **options).result == tw.RESULTS.non_finite


def test_a_failure_in_the_first_step_saves_the_start_once():
    path = tw.flow(
        lambda x: jnp.sum(jnp.sqrt(x)),
        jnp.zeros(1),
        geometry=tw.Euclidean(),
        scheme=tw.Explicit(1.0),
        num_steps=3,
        throw=False,
    )
    assert path.result == tw.RESULTS.non_finite
    assert len(path) == 1
    assert int(path.final.num_steps) == 0


_SINGLE = {
    "explicit vector": Cell("quartic", "vector", "euclidean", "explicit"),
    "proximal vector": Cell("quartic", "vector", "euclidean", "proximal"),
    "ball": Cell("quartic", "vector", "euclidean", "constrained ball"),
    "ode": Cell("quartic", "vector", "mahalanobis", "continuous"),
    "finite volumes": Cell("sum", "plane", "wasserstein", "continuous"),
    "fisher-rao": Cell("kl", "line", "fisher-rao", "backtracking"),
    "langevin": Cell("kl", "particles", "wasserstein", "langevin"),
    "kernel density": Cell("jensen shannon", "kernel particles", "wasserstein", "explicit"),
    "gaussian": Cell("kl", "gaussian", "wasserstein", "explicit"),
    "gaussian jko": Cell("kl", "gaussian", "wasserstein", "proximal"),
    "natural gradient": Cell("likelihood", "normal mean scale", "fisher-rao", "explicit"),
}


def _in_single(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if cells.is_floating(leaf) else leaf, tree)


def test_jko_on_the_line_asks_for_float64_before_it_runs():
    energy, state, geometry, scheme = Cell("kl", "line", "wasserstein", "proximal").parts
    with pytest.raises(ValueError, match="jax_enable_x64") as caught:
        tw.flow(energy, _in_single(state), geometry=geometry, scheme=scheme, num_steps=1)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize("name", _SINGLE)
def test_float32_stays_float32_and_follows_float64(name):
    energy, state, geometry, scheme = _SINGLE[name].parts
    options = {"geometry": geometry, "scheme": scheme, "num_steps": 5, "key": jax.random.key(0)}
    double = tw.flow(energy, state, **options)
    single = tw.flow(energy, _in_single(state), **options)
    for leaf in jax.tree.leaves((single.final.state, single.times, single.records)):
        assert leaf.dtype == jnp.float32, leaf
    for a, b in zip(jax.tree.leaves(single.final.state), jax.tree.leaves(double.final.state), strict=True):
        if name == "langevin":
            # The noise of another precision is another noise.
            continue
        np.testing.assert_allclose(a, b, atol=2e-3 * float(jnp.max(jnp.abs(b))))
