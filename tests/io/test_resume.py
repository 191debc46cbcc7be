"""A run that goes on from a checkpoint gives the path of a run that never stopped, bit for bit."""

import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resumable import RUNS, content, differences, eager, run

import thalweg as tw
from thalweg import _loop


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 1, 1, 5, 5, ... steps, so that a short run has many: they end at 1, 2, 7, 12, ..."""
    monkeypatch.setattr(_loop, "next_chunk", lambda steps, elapsed: 5)
    monkeypatch.setattr(_loop, "pace_of", lambda name: 1)


@functools.cache
def whole(name: str, **end: Any) -> tw.Path:
    """The run that never stopped."""
    return run(name, **end)


def assert_same(one: tw.Path, other: tw.Path) -> None:
    assert differences(content(one), content(other)) == []


class Steps:
    """Counts the steps that are taken, and calls `before` with the count before each chunk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None] = lambda taken: None):
        self.taken = 0
        run_chunk = _loop.run_chunk

        def counted(problem: Any, flow_state: Any, num_steps: int, *, begins: bool = False) -> Any:
            if not begins:
                before(self.taken)
            out = run_chunk(problem, flow_state, num_steps, begins=begins)
            self.taken += int(out[0].num_steps) - int(flow_state.num_steps)
            return out

        monkeypatch.setattr(_loop, "run_chunk", counted)


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


def kill_after(steps: int) -> Callable[[int], None]:
    def before(taken: int) -> None:
        if taken >= steps:
            raise Killed

    return before


@pytest.mark.parametrize("length", [1, 1000])
@pytest.mark.parametrize("name", RUNS)
def test_the_length_of_a_chunk_changes_no_bit(name: str, length: int, monkeypatch: pytest.MonkeyPatch):
    other = whole(name, num_steps=40)
    monkeypatch.setattr(_loop, "next_chunk", lambda steps, elapsed: length)
    assert_same(run(name, num_steps=40), other)


@pytest.mark.parametrize("num_steps", [7, 12, 40])
@pytest.mark.parametrize("name", RUNS)
def test_a_path_shows_its_start_each_save_and_its_end_once(name: str, num_steps: int):
    every = RUNS[name]["save_every"]
    expected = [*range(0, num_steps, every), num_steps]
    times = whole(name, num_steps=num_steps).times
    assert times == pytest.approx([0.01 * step for step in expected], rel=1e-12)  # sums of 0.01, to rounding


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_changes_no_bit(name: str, tmp_path: Path):
    assert_same(run(name, num_steps=40, checkpoint=eager(tmp_path)), whole(name, num_steps=40))


@pytest.mark.parametrize("end", [{"num_steps": 40}, {"final_time": 0.405}])
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_without_a_trace(
    name: str, end: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for steps in (0, 2, 7):
        with monkeypatch.context() as patch:
            Steps(patch, kill_after(steps))
            with pytest.raises(Killed):
                run(name, **end, checkpoint=eager(tmp_path))
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        resumed = run(name, **end, checkpoint=eager(tmp_path))
    assert_same(resumed, whole(name, **end))
    # The second run took 2 steps before it was killed, and the third 7 more.
    assert steps.taken == int(resumed.final.num_steps) - 9


@pytest.mark.parametrize(("first", "then"), [(7, 12), (12, 40), (9, 9)])
@pytest.mark.parametrize("name", RUNS)
def test_more_steps_go_on_from_where_a_finished_run_was(
    name: str, first: int, then: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(name, num_steps=first, checkpoint=eager(tmp_path))
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        prolonged = run(name, num_steps=then, checkpoint=eager(tmp_path))
    assert steps.taken == then - first
    assert_same(prolonged, whole(name, num_steps=then))


# 0.105 cuts the last step; 0.107 lies within the step that 0.105 cut; 0.1 is reached without a cut, to rounding.
@pytest.mark.parametrize(("first", "then"), [(0.105, 0.105), (0.105, 0.107), (0.105, 0.25), (0.1, 0.25)])
@pytest.mark.parametrize("name", RUNS)
def test_a_later_final_time_takes_the_cut_steps_again(
    name: str, first: float, then: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ended = run(name, final_time=first, checkpoint=eager(tmp_path))
    assert float(ended.times[-1]) == first
    with monkeypatch.context() as patch:
        steps = Steps(patch)
        prolonged = run(name, final_time=then, checkpoint=eager(tmp_path))
    assert_same(prolonged, whole(name, final_time=then))
    assert steps.taken < int(prolonged.final.num_steps), "it did not start again"


def test_a_final_time_after_a_number_of_steps_goes_on(tmp_path: Path):
    run("particles", num_steps=7, checkpoint=eager(tmp_path))
    prolonged = run("particles", final_time=0.155, checkpoint=eager(tmp_path))
    assert_same(prolonged, whole("particles", final_time=0.155))


@pytest.mark.parametrize("first", [{"num_steps": 12}, {"final_time": 0.12}])
@pytest.mark.parametrize("then", [{"num_steps": 5}, {"final_time": 0.05}])
def test_a_run_that_is_to_end_before_its_checkpoint_is_refused(
    first: dict[str, Any], then: dict[str, Any], tmp_path: Path
):
    run("particles", **first, checkpoint=eager(tmp_path))
    with pytest.raises(tw.CheckpointError, match="stands at .*nothing was changed"):
        run("particles", **then, checkpoint=eager(tmp_path))
    assert_same(run("particles", **first, checkpoint=eager(tmp_path)), whole("particles", **first))


@pytest.mark.parametrize("every_seconds", [0.0, 1000.0])
def test_a_run_that_stopped_stops_again_at_the_same_state(every_seconds: float, tmp_path: Path):
    options = {"num_steps": 60, "stop": lambda snapshot: snapshot.time > 0.225}
    stopped = run("particles", **options)
    assert stopped.result == tw.RESULTS.stopped
    assert int(stopped.final.num_steps) == 23
    for _ in range(2):
        keeper = tw.Checkpoint(tmp_path, every_seconds=every_seconds)
        assert_same(run("particles", **options, checkpoint=keeper), stopped)
    # Without the condition the same run goes on past it.
    assert_same(run("particles", num_steps=60, checkpoint=eager(tmp_path)), whole("particles", num_steps=60))


def test_a_run_that_failed_fails_again_at_the_same_state(tmp_path: Path):
    explode = {"energy": lambda x: -jnp.sum(x**4), "scheme": tw.Explicit(0.03), "num_steps": 60, "throw": False}
    failed = run("backtracking", **explode)
    assert failed.result == tw.RESULTS.non_finite
    for _ in range(2):
        assert_same(run("backtracking", **explode, checkpoint=eager(tmp_path)), failed)


def interrupt_after(steps: int) -> Callable[[int], None]:
    def before(taken: int) -> None:
        if taken >= steps:
            signal.raise_signal(signal.SIGINT)

    return before


@pytest.mark.parametrize("name", RUNS)
def test_control_c_waits_for_the_chunk_and_keeps_everything(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Seven steps lie between two saves of each run: the state where it stopped is shown as the last save.
    with monkeypatch.context() as patch:
        Steps(patch, interrupt_after(2))
        with pytest.raises(tw.FlowInterrupted, match="interrupted from the keyboard") as raised:
            run(name, num_steps=40, checkpoint=eager(tmp_path))
    path = raised.value.path
    assert int(path.final.num_steps) == 7
    assert float(path.times[-1]) == float(path.final.time)
    assert np.array_equal(path.times, whole(name, num_steps=7).times)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(run(name, num_steps=40, checkpoint=eager(tmp_path)), whole(name, num_steps=40))


@pytest.mark.parametrize("where", ["progress", "store"])
def test_control_c_outside_a_step_is_not_lost(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = tw.Checkpoint.store

    def interrupted_store(self: Any, *args: Any, **options: Any) -> None:
        if where == "store" and int(args[1].num_steps) == 7:
            signal.raise_signal(signal.SIGINT)
        store(self, *args, **options)

    def progress(report: tw.Progress) -> None:
        if where == "progress" and report.num_steps == 7:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(tw.Checkpoint, "store", interrupted_store)
        with pytest.raises(tw.FlowInterrupted) as raised:
            run("particles", num_steps=40, checkpoint=eager(tmp_path), progress=progress)
    assert int(raised.value.path.final.num_steps) == 7
    assert_same(run("particles", num_steps=40, checkpoint=eager(tmp_path)), whole("particles", num_steps=40))


def test_a_second_control_c_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def before(taken: int) -> None:
        if taken >= 7:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        Steps(patch, before)
        with pytest.raises(tw.FlowInterrupted) as raised:
            run("particles", num_steps=40, checkpoint=eager(tmp_path))
    assert int(raised.value.path.final.num_steps) == 7
    assert_same(run("particles", num_steps=40, checkpoint=eager(tmp_path)), whole("particles", num_steps=40))


@pytest.mark.parametrize(
    "change",
    [
        {"key": jax.random.key(8)},
        {"save_every": 2},
        {"measure": lambda state: {"moments": {"second": jnp.mean(state.positions**3, axis=0)}}},
        {"scheme": tw.Langevin(0.02)},
        {"initial_state": tw.Particles(jnp.asarray([[0.5, -0.2], [1.0, 0.3], [-0.7, 0.2]]))},
        # The same name and the same form as the energy it was begun with: only a constant inside differs.
        {"energy": tw.KL(tw.Target(lambda x: -0.25 * jnp.sum((x**2 - 1.5) ** 2), dim=2))},
        {"energy": tw.KL(tw.Target(lambda x: -0.25 * jnp.sum((x**2 - 1.0) ** 4), dim=2))},
    ],
    ids=["key", "save_every", "measure", "scheme", "start", "constant", "operation"],
)
def test_another_problem_is_told_from_the_one_it_was_begun_with(change: dict[str, Any], tmp_path: Path):
    run("particles", num_steps=7, checkpoint=eager(tmp_path))
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(tw.CheckpointError, match="belongs to another problem.*\n.*\n.*another directory"):
        run("particles", **change, num_steps=12, checkpoint=eager(tmp_path))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_an_equal_problem_made_anew_is_the_same_problem(tmp_path: Path):
    run("particles", num_steps=7, checkpoint=eager(tmp_path))
    again = {"energy": tw.KL(tw.Target(lambda y: -0.25 * jnp.sum((y**2 - 1.0) ** 2), dim=2))}
    assert_same(run("particles", **again, num_steps=12, checkpoint=eager(tmp_path)), whole("particles", num_steps=12))


def test_a_constant_that_a_function_closes_over_is_part_of_the_problem(tmp_path: Path):
    def energy_of(weights: Any) -> Callable[..., Any]:
        return lambda x: jnp.sum(weights * x**2)

    for weights in (np.asarray([1.0, 2.0]), jnp.asarray([1.0, 2.0])):
        run("backtracking", energy=energy_of(weights), num_steps=5, checkpoint=eager(tmp_path))
    with pytest.raises(tw.CheckpointError, match="another problem"):
        run("backtracking", energy=energy_of(np.asarray([1.0, 2.5])), num_steps=5, checkpoint=eager(tmp_path))


def test_the_states_of_a_path_are_complete_whether_resumed_or_not(tmp_path: Path):
    # The model and the standard deviation of the family are no arrays: a save does not hold them, the path must.
    family = tw.likelihoods.Regression(
        lambda params, x: params["slope"] * x, np.arange(3.0), tw.likelihoods.Normal(0.5)
    )
    start = tw.Parametric({"slope": jnp.asarray(0.3)}, family)
    energy = tw.NegativeLogLikelihood(jnp.asarray([0.0, 1.0, 2.0]))
    for num_steps in (3, 6):
        options = {"geometry": tw.FisherRao(), "scheme": tw.Explicit(0.1), "num_steps": num_steps}
        path = tw.flow(energy, start, checkpoint=eager(tmp_path), **options)
    assert jax.tree.structure(path.states) == jax.tree.structure(start)
    for index in (0, 3, 6):
        again = float(energy(path.state_at(index)))
        assert again == pytest.approx(float(path.energies[index]), rel=1e-12)  # compiled otherwise: rounding only


def test_a_second_call_compiles_nothing_and_traces_the_loop_no_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    traced = []

    def energy(x: Any) -> Any:
        traced.append(type(x).__name__)
        return jnp.sum(jnp.cosh(x))

    compiled = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def go(num_steps: int, step_size: float) -> int:
        traced.clear()
        compiled.clear()
        start = jnp.asarray([1.0, 2.0])
        tw.flow(energy, start, geometry=tw.Euclidean(), scheme=tw.Explicit(step_size), num_steps=num_steps)
        return len(traced)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        first = go(50, 0.1)
        assert compiled
        # The checks before a run look at shapes each time; the loop is kept, for other lengths and step sizes too.
        second, third = go(50, 0.1), go(2000, 0.05)
        assert compiled == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert second == third < first
