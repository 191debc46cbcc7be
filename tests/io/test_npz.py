"""What is saved is what is loaded, to the last bit; what is damaged is told, never loaded."""

import contextlib
import dataclasses
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resumable import differences, run

import thalweg as tw
from thalweg import io, likelihoods
from thalweg.io import _atomic, _sealed, _structure
from thalweg.io._structure import NotStored, known_classes
from thalweg.states import AbstractState


def model(params: Any, inputs: Any) -> Any:
    return params["slope"] * inputs


GRID = tw.Grid((-1.0, 0.0), (1.0, 0.1 + 0.2), (3, 4), (tw.NoFlux(), tw.Periodic()))
STATES: dict[str, Any] = {
    "GridDensity": tw.GridDensity.from_function(lambda x: jnp.exp(-jnp.sum(x**2)), GRID),
    "GridFunction": tw.GridFunction.from_function(
        lambda x: x[0] ** 2, tw.Grid(0.0, 1.0, 8), (tw.Dirichlet(0.0), tw.Natural())
    ),
    "Particles": tw.Particles(jnp.asarray([[0.1], [0.2]])),
    "Particles with weights and a density model": tw.Particles(
        jnp.asarray([[0.1], [0.2]]), jnp.log(jnp.asarray([0.25, 0.75])), tw.KernelDensity(0.3, shrink=False)
    ),
    "Gaussian": tw.Gaussian(jnp.asarray([1.0, 2.0]), jnp.asarray([[2.0, 0.5], [0.5, 1.0]])),
    "Parametric": tw.Parametric(
        {"mean": jnp.asarray(0.1), "log_scale": jnp.asarray(-0.2)}, likelihoods.NormalMeanScale()
    ),
    "Parametric with a scale": tw.Parametric(jnp.asarray([0.5]), likelihoods.Normal(0.1)),
    "array": jnp.asarray([1 / 3, np.pi, -0.0, 5e-324]),
    "pytree": {"w": [jnp.asarray([1.0]), (jnp.asarray(2.0), None)], "b": jnp.zeros((0, 3))},
    "single precision": jnp.asarray([0.1, 3e38], jnp.float32),
    "half precision": {"b": jnp.asarray([0.1, -2.0], jnp.bfloat16), "h": jnp.asarray(0.1, jnp.float16)},
}


def test_every_class_of_state_is_in_the_round_trip():
    def below(cls: type) -> set[str]:
        return {cls.__name__}.union(*(below(child) for child in cls.__subclasses__()))

    ours = {name for name in below(AbstractState) if not name.startswith("Abstract") and hasattr(tw, name)}
    assert ours <= {type(state).__name__ for state in STATES.values()}


@pytest.mark.parametrize("name", STATES)
def test_a_state_comes_back_to_the_last_bit(name: str, tmp_path: Path):
    io.save(tmp_path / "state.npz", STATES[name])
    back = tw.load(tmp_path / "state.npz")
    assert type(back) is type(STATES[name])
    assert differences(back, STATES[name]) == []


def test_a_path_comes_back_to_the_last_bit(tmp_path: Path):
    for name in ("particles", "grid"):
        path = run(name, num_steps=7)
        path.save(tmp_path / "path.npz")
        back = tw.load(tmp_path / "path.npz")
        assert differences(back, path) == []
        assert back.message == path.message
        assert back.stats == path.stats
        assert back.unavailable == path.unavailable
        assert repr(back) == repr(path)


def test_a_loaded_path_is_a_place_to_go_on_from(tmp_path: Path):
    path = run("grid", num_steps=4)
    path.save(tmp_path / "path.npz")
    state = tw.load(tmp_path / "path.npz").final.state
    on, expected = (run("grid", initial_state=start, num_steps=2) for start in (state, path.final.state))
    assert differences(on.states, expected.states) == []


@pytest.mark.parametrize(
    "value",
    [
        *(True, 7, -(2**80), 0.1, float("inf"), 5e-324, "τέλος", None),
        (1, (2.0, "a")),
        [1, [None]],
        {"a": 1, 3: "b", (1, 2): {}},
        np.float32(0.1),
        np.int64(3),
        np.arange(6).reshape(2, 3)[:, ::-1],
        np.asfortranarray(np.eye(2)[:, :1] * np.arange(3.0)),
        np.asarray(["text", "x"]),
        np.asarray(1.5, ">f8"),
        tw.generators.reverse_kl,
        tw.generators.alpha(0.5),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),  # no address: workers must agree
)
def test_a_plain_value_comes_back_with_its_type(value: Any, tmp_path: Path):
    io.save(tmp_path / "value.npz", value)
    back = tw.load(tmp_path / "value.npz")
    assert type(back) is type(value)
    if isinstance(value, np.ndarray):
        assert back.dtype == value.dtype.newbyteorder("=")
        assert np.array_equal(back, value)
    else:
        assert back == value


def test_numbers_that_are_not_numbers_come_back(tmp_path: Path):
    io.save(tmp_path / "nan.npz", (float("nan"), jnp.asarray([jnp.nan, -jnp.inf])))
    number, array = tw.load(tmp_path / "nan.npz")
    assert np.isnan(number)
    assert np.isnan(array[0])
    assert array[1] == -np.inf


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
def test_a_random_key_draws_the_same_numbers_afterwards(generator: str, tmp_path: Path):
    key = jax.random.split(jax.random.key(5, impl=generator), 3)
    io.save(tmp_path / "key.npz", {"key": key})
    back = tw.load(tmp_path / "key.npz")["key"]
    assert back.dtype == key.dtype
    assert np.array_equal(jax.random.normal(back[1], (4,)), jax.random.normal(key[1], (4,)))


@pytest.mark.parametrize("name", tw.RESULTS._name_to_item)
def test_a_result_is_kept_by_its_name(name: str, tmp_path: Path):
    io.save(tmp_path / "result.npz", getattr(tw.RESULTS, name))
    assert tw.load(tmp_path / "result.npz") == getattr(tw.RESULTS, name)
    # The numbers of the members may change from version to version; the names are the contract.
    assert name in header_of(tmp_path / "result.npz")["root"]["result"]


def test_the_results_of_several_runs_are_kept(tmp_path: Path):
    @jax.vmap
    def several(bad: Any) -> Any:
        return tw.RESULTS.where(bad, tw.RESULTS.non_finite, tw.RESULTS.stopped)

    results = several(jnp.asarray([True, False]))
    io.save(tmp_path / "results.npz", results)
    assert differences(tw.load(tmp_path / "results.npz"), results) == []


def header_of(file: Path) -> dict[str, Any]:
    with np.load(file) as archive:
        return json.loads(archive["header"].tobytes())


def test_the_file_is_an_npz_that_numpy_reads_without_pickle(tmp_path: Path):
    io.save(tmp_path / "x.npz", {"x": jnp.asarray([1.0, 2.0])})
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert archive["leaf_000000"].tolist() == [1.0, 2.0]
        assert archive.files == ["header", "leaf_000000"]


def test_equal_content_makes_equal_files(tmp_path: Path):
    for name in ("a", "b"):
        io.save(tmp_path / name, STATES["Gaussian"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_function_comes_back_as_a_name_that_says_what_is_missing(tmp_path: Path):
    state = tw.Parametric(
        {"slope": jnp.asarray(2.0)}, likelihoods.Regression(model, np.arange(3.0), likelihoods.Normal())
    )
    io.save(tmp_path / "state.npz", state)
    back = tw.load(tmp_path / "state.npz")
    assert np.array_equal(back.family.inputs, np.arange(3.0))
    with pytest.raises(tw.CheckpointError, match=f"`{model.__module__}.model` was saved by its name only") as raised:
        back.family.log_density(back.params, jnp.zeros(3))
    assert len(str(raised.value).splitlines()) <= 5
    assert back.family.model == NotStored(f"{model.__module__}.model")
    mended = eqx.tree_at(lambda s: s.family.model, back, model)
    assert differences(mended, state) == []
    io.save(tmp_path / "again.npz", back)
    assert tw.load(tmp_path / "again.npz").family.model == back.family.model


class Foreign(eqx.Module):
    x: Any


def test_the_memory_of_another_library_does_not_hinder_saving_a_path(tmp_path: Path):
    path = run("grid", num_steps=2)
    final = dataclasses.replace(path.final, memory=(jnp.zeros(2), Foreign(jnp.ones(3))))
    dataclasses.replace(path, final=final, extras={"certificate": Foreign(1)}).save(tmp_path / "path.npz")
    back = tw.load(tmp_path / "path.npz")
    assert back.final.memory == NotStored("builtins.tuple")
    assert back.extras == NotStored("builtins.dict")
    assert differences(back.states, path.states) == []


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"a": Foreign(1)}, r"`dict\['a'\]` is a test_npz.Foreign, which cannot be saved; nothing was written"),
        ([{1, 2}], r"`list\[0\]` is a builtins.set"),
        (np.asarray([None]), "dtype object, which cannot be saved"),
        (np.zeros(2, [("a", "f8")]), "which cannot be saved"),
    ],
)
def test_what_cannot_be_saved_is_told_and_the_old_file_stays(value: Any, complaint: str, tmp_path: Path):
    io.save(tmp_path / "x.npz", 1)
    with pytest.raises(tw.CheckpointError, match=complaint):
        io.save(tmp_path / "x.npz", value)
    assert tw.load(tmp_path / "x.npz") == 1
    assert os.listdir(tmp_path) == ["x.npz"]


def test_a_traced_value_cannot_be_saved(tmp_path: Path):
    def saves(x: Any) -> Any:
        io.save(tmp_path / "x.npz", {"x": x})
        return x

    with pytest.raises(tw.CheckpointError, match="`dict\\['x'\\]` is a traced value"):
        jax.jit(saves)(1.0)
    assert os.listdir(tmp_path) == []


# One path with every kind of entry, small enough that every byte can be turned over.
@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("whole") / "path.npz"
    io.save(file, {"state": STATES["GridDensity"], "key": jax.random.key(0), "result": tw.RESULTS.stopped})
    assert file.stat().st_size < 4096
    return file.read_bytes()


def assert_told(file: Path, what: str | None = None) -> None:
    with pytest.raises(tw.CheckpointError, match=what) as raised:
        tw.load(file)
    assert str(file) in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 5


def test_a_flipped_bit_anywhere_is_told(content: bytes, tmp_path: Path):
    file = tmp_path / "path.npz"
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        file.write_bytes(bytes(flipped))
        assert_told(file)


def test_a_file_cut_short_anywhere_is_told(content: bytes, tmp_path: Path):
    file = tmp_path / "path.npz"
    for length in range(len(content)):
        file.write_bytes(content[:length])
        assert_told(file, "not a whole file")
    for more in (b"\0", b"more", content):
        file.write_bytes(content + more)
        assert_told(file)


def test_two_exchanged_blocks_are_told(content: bytes, tmp_path: Path):
    file = tmp_path / "path.npz"
    start = content.index(b"leaf_000000")
    for size in (8, 64):
        a, b = start + 200, start + 200 + size
        assert content[a:b] != content[b : b + size]
        file.write_bytes(content[:a] + content[b : b + size] + content[a:b] + content[b + size :])
        assert_told(file, "damaged|not a whole file")


@pytest.mark.parametrize("kind", ["nothing", "text", "npy", "npz", "pickle", "directory", "missing", "segment"])
def test_a_foreign_file_is_told(kind: str, tmp_path: Path):
    file = tmp_path / "foreign.npz"
    if kind == "directory":
        file.mkdir()
    elif kind == "npz":
        np.savez(file, header=np.arange(3))
    elif kind == "npy":
        np.save(tmp_path / "foreign.npy", np.arange(3))
        (tmp_path / "foreign.npy").rename(file)
    elif kind == "pickle":
        np.savez(file, header=np.asarray([print]))
    elif kind == "segment":
        _sealed.write_sealed(file, {"kind": "segment"}, [])
    elif kind != "missing":
        file.write_bytes({"nothing": b"", "text": b"hello\n" * 100}[kind])
    assert_told(file, {"missing": "No such file", "segment": "of the kind 'segment', not 'object'"}.get(kind))


def sealed(file: Path, members: dict[str, np.ndarray], compression: int = zipfile.ZIP_STORED) -> None:
    """A file of an ill-meaning author, whose digest is right."""
    with open(file, "wb+") as raw:
        with zipfile.ZipFile(raw, "w", compression) as archive:
            archive.comment = _sealed._MARK + b"0" * 64
            for name, array in members.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=True)
        digest = _sealed._digest(raw, raw.tell())
        raw.seek(-64, os.SEEK_END)
        raw.write(digest.encode())


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("bomb",)


def header(root: Any, **more: Any) -> np.ndarray:
    text = json.dumps({"format": 1, "kind": "object", "root": root, "dtypes": [], **more})
    return np.frombuffer(text.encode(), np.uint8)


@pytest.mark.parametrize(
    "members",
    [
        {"header": np.asarray([Bomb()], object)},
        {"header": header({"array": 0}, dtypes=["object"]), "leaf_000000": np.asarray([Bomb()], object)},
        {"header": header({"named": "os.mkdir"}), "leaf_000000": np.zeros(1)},
        {"header": header({"object": "Popen", "fields": {}})},
        {"header": header({"object": "os.system", "fields": {"command": "mkdir bomb"}})},
        {"header": header({"object": "Gaussian", "fields": {"mean": 1}})},
        {"header": header({"object": "Gaussian", "fields": {"mean": 1, "covariance": 1, "__class__": 1}})},
        {"header": header({"array": 3})},
        {"header": header({"result": "no_such_result"})},
        {"header": header({"anything": 1})},
        {"header": header(None, format="1")},
        {"header": header(None, format=99)},
        {"header": header(None, dtypes=["complex32"]), "leaf_000000": np.zeros(1, np.uint32)},
        {"header": np.frombuffer(b'{"format": 1, "kind": "object", "root": ' + b"[" * 100_000, np.uint8)},
        {"other": np.zeros(1)},
    ],
)
def test_a_file_made_to_harm_runs_nothing_and_is_told(
    members: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    sealed(tmp_path / "harm.npz", members)
    assert_told(tmp_path / "harm.npz")
    assert os.listdir(tmp_path) == ["harm.npz"]


def test_a_deeply_nested_header_is_loaded_or_told(tmp_path: Path):
    root = "@"
    text = header(root).tobytes().replace(b'"@"', b'{"list":[' * 450 + b"1" + b"]}" * 450)
    sealed(tmp_path / "deep.npz", {"header": np.frombuffer(text, np.uint8)})
    with contextlib.suppress(tw.CheckpointError):
        tw.load(tmp_path / "deep.npz")


def test_a_compressed_member_is_not_inflated(tmp_path: Path):
    sealed(tmp_path / "bomb.npz", {"header": header(1, padding=" " * 10_000)}, zipfile.ZIP_DEFLATED)
    assert_told(tmp_path / "bomb.npz", "compressed")


def test_loading_imports_nothing_that_the_file_names(tmp_path: Path):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    sealed(tmp_path / "x.npz", {"header": header({"named": "evil.function"})})
    code = "import thalweg as tw; print(repr(tw.load('x.npz')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("NotStored('evil.function')", "")


def test_double_precision_is_not_rounded_silently(tmp_path: Path):
    io.save(tmp_path / "x.npz", jnp.asarray([1 / 3]))
    with jax.enable_x64(False), pytest.raises(tw.CheckpointError, match="float64.*float32.*\n.*jax_enable_x64"):
        tw.load(tmp_path / "x.npz")


class Broken(Exception):
    pass


@pytest.mark.parametrize("moment", ["first array", "later array", "sync", "replace"])
@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    moment: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "path.npz"
    io.save(file, "the old one")
    old = file.read_bytes()
    calls = []
    write_array = np.lib.format.write_array

    def fails(*args: Any, **options: Any) -> None:
        calls.append(1)
        if moment == "later array" and len(calls) < 3:
            return write_array(*args, **options)
        raise error

    place = {"sync": (_atomic.os, "fsync"), "replace": (_atomic.os, "replace")}
    with monkeypatch.context() as patch:
        patch.setattr(*place.get(moment, (np.lib.format, "write_array")), fails)
        with pytest.raises(tw.CheckpointError if isinstance(error, OSError) else type(error)):
            io.save(file, STATES["pytree"])
    assert calls
    assert os.listdir(tmp_path) == ["path.npz"]
    assert file.read_bytes() == old


@pytest.mark.parametrize("file", ["no/such/directory/path.npz", "file/path.npz", "."])
def test_a_file_that_cannot_be_written_is_told(file: str, tmp_path: Path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(tw.CheckpointError, match="could not be written") as raised:
        io.save(tmp_path / file, 1)
    assert len(str(raised.value).splitlines()) <= 5
    assert os.listdir(tmp_path) == ["file"]


def test_a_saved_file_has_the_rights_of_any_new_file_and_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "plain").write_text("")
    io.save(tmp_path / "x.npz", 1)
    assert stat.S_IMODE((tmp_path / "x.npz").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    (tmp_path / "link.npz").symlink_to(tmp_path / "x.npz")
    io.save(tmp_path / "link.npz", 2)
    assert (tmp_path / "link.npz").is_symlink()
    assert tw.load(tmp_path / "x.npz") == 2


def test_every_name_of_a_class_is_its_own():
    classes = [cls for cls in everything_below(eqx.Module) if is_public(cls)] + list(_structure._FROZEN)
    names = [cls.__name__ for cls in classes]
    # A name that two folders use is told apart by the module.
    expected = {
        cls: cls.__name__ if names.count(cls.__name__) == 1 else f"{cls.__module__}.{cls.__name__}" for cls in classes
    }
    known = {cls: name for name, cls in known_classes().items()}
    # Those are known too once something has imported them.
    assert {cls: name for cls, name in known.items() if not cls.__module__.startswith("thalweg.interop.")} == expected
    assert known_classes()["thalweg.states._grid_function.Dirichlet"] is tw.Dirichlet


def everything_below(cls: type) -> set[type]:
    return {cls}.union(*(everything_below(child) for child in cls.__subclasses__()))


def is_public(cls: type) -> bool:
    home = sys.modules[cls.__module__]
    ours = cls.__module__.startswith("thalweg.") and not cls.__name__.startswith("_")
    # What other libraries call is no part of a path.
    ours = ours and not cls.__module__.startswith("thalweg.interop.")
    return ours and getattr(home, cls.__name__, None) is cls
