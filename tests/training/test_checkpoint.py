"""Checkpoints: what was saved comes back exactly, on any mesh, and what cannot says why."""

import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from t2g_jax.errors import T2GError
from t2g_jax.training.checkpoint import MARKER, Checkpoints
from t2g_jax.training.checksums import bit_sum, of_arrays


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    key: jax.Array


def make_state(step=3):
    params = {
        "dense": {"kernel": jnp.arange(64, dtype=jnp.bfloat16).reshape(16, 4) / 3},
        "norm": {"scale": jnp.linspace(0, 1, 8)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.asarray(step), params, optimizer.init(params), jax.random.key(step))


def mesh_of(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def abstract(tree, devices=1):
    """The tree's shapes, sharded over the first axis of all that divides."""

    def leaf(x):
        axes = PartitionSpec("data") if x.ndim and x.shape[0] % devices == 0 else PartitionSpec()
        sharding = NamedSharding(mesh_of(devices), axes)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


def placed(tree, devices):
    return jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), tree, abstract(tree, devices))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


META = {"phase": "sft", "config": "abc", "data": {"next_batch": 7}, "kl": {"beta": 0.05}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with steps 3 (one device) and 5 (sharded over eight); copy it before changing it."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(3, make_state(3), META)
        checkpoints.save(5, placed(make_state(5), 8), META | {"phase": "rltf"})
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.mark.parametrize(("step", "devices"), [(3, 1), (3, 8), (5, 1), (5, 8), (5, 4)])
def test_restores_exactly_on_any_mesh(saved, step, devices):
    with Checkpoints(saved, read_only=True) as checkpoints:
        wanted = abstract(make_state(), devices)
        state, meta = checkpoints.restore(wanted, step)
        assert_same(state, make_state(step))
        assert isinstance(state, State)
        assert jax.tree.all(jax.tree.map(lambda x, a: x.sharding == a.sharding, state, wanted))
        assert meta == META | {"phase": "sft" if step == 3 else "rltf"}


def test_restored_keys_draw_the_same_numbers(saved):
    with Checkpoints(saved) as checkpoints:
        state, _ = checkpoints.restore(abstract(make_state()), 3)
    np.testing.assert_array_equal(
        jax.random.uniform(state.key, (5,)), jax.random.uniform(jax.random.key(3), (5,))
    )


def test_the_latest_is_the_default_and_arrays_serve_as_abstract(saved):
    with Checkpoints(saved) as checkpoints:
        assert (checkpoints.steps, checkpoints.latest_step) == ([3, 5], 5)
        state, _ = checkpoints.restore(make_state(0))
        assert_same(state, make_state(5))
        assert checkpoints.meta()["phase"] == "rltf"
        assert checkpoints.meta(3)["phase"] == "sft"


def test_params_are_restored_without_the_rest(saved):
    with Checkpoints(saved, read_only=True) as checkpoints:
        params, meta = checkpoints.restore_params(abstract(make_state().params, 8), step=3)
        assert_same(params, make_state().params)
        assert meta == META
        params, _ = checkpoints.restore_params(make_state().params)
        assert_same(params, make_state().params)


def test_arrays_may_be_deleted_and_meta_changed_right_after_an_async_save(tmp_path):
    """What donation does to them; deleted outright, as JAX on CPU may copy instead of donating."""
    state = {"params": {"w": jnp.arange(1 << 20, dtype=jnp.float32)}}
    wanted, meta = abstract(state), {"cursor": {"next_batch": 1}}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state, meta)
        state["params"]["w"].delete()
        meta["cursor"]["next_batch"] = 2
        restored, restored_meta = checkpoints.restore(wanted)
    np.testing.assert_array_equal(restored["params"]["w"], np.arange(1 << 20))
    assert restored_meta == {"cursor": {"next_batch": 1}}


def test_empty_containers_and_none_stay(tmp_path):
    state = {"params": {"w": jnp.ones(2)}, "carry": {}, "none": None, "tuple": ()}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state, {})
        assert_same(checkpoints.restore(state)[0], state)
        assert_same(checkpoints.restore_params(state["params"])[0], state["params"])


def small(value):
    return {"params": {"w": jnp.full((2,), value)}}


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 1)])
def test_the_last_and_the_best_are_kept(tmp_path, mode, best):
    scores = {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.3, 5: None, 6: 0.4}
    with Checkpoints(tmp_path / "c", keep_last=2, keep_best=("reward", mode)) as checkpoints:
        assert checkpoints.best_step is None
        for step, score in scores.items():
            metrics = None if score is None else {"reward": score, "other": 1.0}
            checkpoints.save(step, small(step), {}, metrics=metrics)
        assert checkpoints.best_step == best
    with Checkpoints(tmp_path / "c", keep_best=("reward", mode)) as again:
        assert again.steps == [best, 5, 6]
        assert again.best_step == best


def test_only_the_last_are_kept_without_keep_best(tmp_path):
    with Checkpoints(tmp_path / "c", keep_last=1, async_=False) as checkpoints:
        for step in (0, 1, 2):
            checkpoints.save(step, small(step), {})
        assert checkpoints.steps == [2]
        with pytest.raises(T2GError, match="best_step needs keep_best"):
            _ = checkpoints.best_step


def test_going_back_is_explicit(copy):
    with (
        Checkpoints(copy) as checkpoints,
        pytest.raises(T2GError, match=r"cannot save step 4.*\[5\].*or delete them"),
    ):
        checkpoints.save(4, make_state(4), META)
    shutil.rmtree(copy / "5")
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.steps == [3]
        checkpoints.save(4, make_state(4), META)
        checkpoints.save(4, make_state(4), META)  # the last save of a run that just saved
        assert checkpoints.steps == [3, 4]
    with Checkpoints(copy) as checkpoints, pytest.raises(T2GError, match="cannot save step 4"):
        checkpoints.save(4, make_state(4), META)


def test_a_run_killed_while_saving_keeps_its_last_whole_step(tmp_path):
    """The child has one device and dies inside a save; this process reads it with eight."""
    child = """
        import os, sys
        import jax, jax.numpy as jnp
        from t2g_jax.training.checkpoint import Checkpoints
        assert jax.device_count() == 1
        checkpoints = Checkpoints(sys.argv[1])
        for step in (1, 2):
            state = {"params": {"w": jnp.full((1 << 22,), step, jnp.float32)}}
            checkpoints.save(step, state, {"step": step})
            if step == 1:
                checkpoints.wait()
        os._exit(9)
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    directory = tmp_path / "c"
    command = [sys.executable, "-c", textwrap.dedent(child), str(directory)]
    assert subprocess.run(command, env=environment, timeout=120).returncode == 9
    wanted = abstract({"params": {"w": jax.ShapeDtypeStruct((1 << 22,), jnp.float32)}}, 8)
    with Checkpoints(directory) as checkpoints:
        last = checkpoints.latest_step
        assert last in (1, 2)  # 2 if the disk was faster than the exit
        state, meta = checkpoints.restore(wanted)
        np.testing.assert_array_equal(state["params"]["w"], last)
        assert meta == {"step": last}
        checkpoints.save(last + 1, state, {"step": last + 1})
    left = {p.name for p in directory.iterdir()}
    assert left == {str(last - 1), str(last), str(last + 1), MARKER} - {"0"}


def test_a_half_written_step_is_no_step_and_is_cleared(copy):
    shutil.copytree(copy / "5", copy / "7.orbax-checkpoint-tmp")
    (copy / "7.orbax-checkpoint-tmp" / "commit_success.txt").unlink()
    with Checkpoints(copy, read_only=True) as reader:
        assert reader.latest_step == 5
    assert (copy / "7.orbax-checkpoint-tmp").exists()  # its writer may still be at it
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.latest_step == 5
        checkpoints.save(7, make_state(7), META)
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.steps == [5, 7]
        assert not (copy / "7.orbax-checkpoint-tmp").exists()


def test_no_checkpoint_names_the_folder_and_the_command(tmp_path):
    with pytest.raises(T2GError, match=r"no checkpoint in .*nowhere; run `t2g sft` first"):
        Checkpoints(tmp_path / "nowhere", read_only=True, made_by="t2g sft").restore(small(0))
    assert not (tmp_path / "nowhere").exists()
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest_step is None
        with pytest.raises(T2GError, match=r"no checkpoint in .*new; run the phase"):
            checkpoints.restore(small(0))


def test_a_missing_step_names_those_there(saved):
    with Checkpoints(saved) as checkpoints, pytest.raises(T2GError, match=r"no step 4.*\[3, 5\]"):
        checkpoints.meta(4)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_foreign_folder_is_left_alone(tmp_path, read_only):
    (tmp_path / "100").mkdir()
    (tmp_path / "100" / "model.safetensors").write_text("theirs")
    with pytest.raises(T2GError, match=r"not a checkpoint folder of t2g_jax: it holds \['100'\]"):
        Checkpoints(tmp_path, read_only=read_only)
    assert [p.name for p in tmp_path.iterdir()] == ["100"]


def test_misfits_name_the_parameter_expected_and_found(saved):
    def restore(change):
        state = make_state()
        params = jax.tree.map(lambda x: x, state.params)
        change(params)
        with Checkpoints(saved) as checkpoints:
            checkpoints.restore(state.replace(params=params), 3)

    kernel = r"params\.dense\.kernel: expected {}, found bfloat16\[16, 4\]"
    with pytest.raises(T2GError, match=kernel.format(r"bfloat16\[16, 5\]")):
        restore(lambda p: p["dense"].update(kernel=jnp.zeros((16, 5), jnp.bfloat16)))
    with pytest.raises(T2GError, match=kernel.format(r"float32\[16, 4\]")):
        restore(lambda p: p["dense"].update(kernel=jnp.zeros((16, 4))))
    with pytest.raises(T2GError, match=r"step 3 .*params\.lora: expected float32\[2\], found noth"):
        restore(lambda p: p.update(lora=jnp.zeros(2)))
    with pytest.raises(T2GError, match=r"params\.norm\.scale: expected nothing, found float32\[8"):
        restore(lambda p: p.pop("norm"))


def test_another_optimizer_does_not_fit(saved):
    state = make_state()
    sgd = optax.sgd(0.1, momentum=0.9).init(state.params)
    with Checkpoints(saved) as checkpoints, pytest.raises(T2GError, match=r"opt_state.*and \d+ m"):
        checkpoints.restore(state.replace(opt_state=sgd))


def test_another_kind_of_key_does_not_fit(saved):
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(T2GError, match=r"key: expected uint32\[4\], found uint32\[2\]"):
            checkpoints.restore(make_state().replace(key=jax.random.key(0, impl="rbg")))
        with pytest.raises(T2GError, match=r"key: expected uint32, found key<fry>"):
            checkpoints.restore(make_state().replace(key=jax.random.PRNGKey(0)))


def test_what_a_killed_save_left_behind_goes_after_a_restore(tmp_path):
    with Checkpoints(tmp_path / "c", keep_last=5, async_=False) as checkpoints:
        for step, reward in ((1, 0.5), (2, 0.9), (3, 0.9), (4, 0.1)):
            checkpoints.save(step, small(step), {}, metrics={"reward": reward})
    with Checkpoints(tmp_path / "c", keep_last=1, read_only=True) as checkpoints:
        checkpoints.restore(small(0))
        assert checkpoints.steps == [1, 2, 3, 4]
    with Checkpoints(tmp_path / "c", keep_last=2, async_=False) as checkpoints:
        checkpoints.restore(small(0), step=1)
        assert checkpoints.steps == [1, 2, 3, 4]
        checkpoints.restore(small(0))
        assert checkpoints.steps == [3, 4]


def test_the_best_step_outlasts_what_a_killed_save_left_behind(tmp_path):
    best = {"keep_best": ("reward", "max"), "async_": False}
    with Checkpoints(tmp_path / "c", keep_last=5, **best) as checkpoints:
        for step, reward in ((1, 0.5), (2, 0.9), (3, 0.4), (4, 0.1)):
            checkpoints.save(step, small(step), {}, metrics={"reward": reward})
    with Checkpoints(tmp_path / "c", keep_last=1, **best) as checkpoints:
        checkpoints.restore(small(0))
        assert checkpoints.steps == [2, 4]


def test_what_cannot_be_saved_is_named(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        with pytest.raises(T2GError, match=r"params\.w is int"):
            checkpoints.save(1, {"params": {"w": 3}}, {})
        with pytest.raises(T2GError, match=r"params\.w has shape \[0, 3\]"):
            checkpoints.save(1, {"params": {"w": jnp.zeros((0, 3))}}, {})
        with pytest.raises(T2GError, match="meta of step 1 is not JSON"):
            checkpoints.save(1, small(1), {"beta": float("nan")})
        with pytest.raises(T2GError, match="meta of step 1 is not JSON"):
            checkpoints.save(1, small(1), {"beta": jnp.ones(())})
        assert checkpoints.steps == []
    with pytest.raises(T2GError, match="keep_last is 0"):
        Checkpoints(tmp_path / "c", keep_last=0)


def largest(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def arrays(directory):
    """All files of arrays: which of them holds what is still read is not always the same."""
    return [p for p in directory.rglob("d/*") if p.is_file()]


def cut(*paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damaged",
    [
        lambda step: arrays(step / "state"),
        lambda step: [step / "state" / "manifest.ocdbt"],
        lambda step: [step / "state" / "_METADATA"],
        lambda step: [step / "meta" / "metadata"],
    ],
    ids=["arrays", "manifest", "structure", "meta"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_truncated_step_names_itself_and_the_one_before(copy, damaged):
    cut(*damaged(copy / "5"))
    with (
        Checkpoints(copy) as checkpoints,
        pytest.raises(
            T2GError, match=r"step 5 in .*copy is damaged.*delete .*copy/5 to go back to step 3"
        ),
    ):
        checkpoints.restore(make_state())
    shutil.rmtree(copy / "5")
    with Checkpoints(copy) as checkpoints:
        assert_same(checkpoints.restore(make_state())[0], make_state(3))
    gc.collect()  # Orbax leaves unfinished coroutines behind a failed read; they complain here


def test_a_truncated_only_step_says_so(copy):
    shutil.rmtree(copy / "3")
    cut(copy / "5" / "meta" / "metadata")
    with (
        Checkpoints(copy, read_only=True) as checkpoints,
        pytest.raises(T2GError, match="no earlier step is left"),
    ):
        checkpoints.restore_params(make_state().params)


def test_truncated_metrics_are_reported(tmp_path):
    options = {"keep_best": ("reward", "max"), "async_": False}
    with Checkpoints(tmp_path / "c", **options) as checkpoints:
        checkpoints.save(1, small(1), {}, metrics={"reward": 1.0})
    cut(next((tmp_path / "c" / "1" / "metrics").glob("metrics")))
    with pytest.raises(T2GError, match=r"a checkpoint in .* is damaged"):
        Checkpoints(tmp_path / "c", **options)


def test_read_only_changes_nothing(saved):
    with (
        Checkpoints(saved, read_only=True) as checkpoints,
        pytest.raises(T2GError, match="read_only"),
    ):
        checkpoints.save(9, make_state(), {})
    assert json.loads((saved / MARKER).read_text()) == {"format": 1}


# --- What a disk does ------------------------------------------------------------------------


@pytest.mark.parametrize("step", [3, 5])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_is_noticed(saved, tmp_path, step):
    """Anywhere in the largest file, or in the meta: either nothing changed, or it is refused."""
    rng = np.random.default_rng(0)
    expected = make_state(step)
    refused = []
    for name in ["state"] * 8 + ["meta"] * 4:
        copy = shutil.copytree(saved, tmp_path / "copy")
        path = largest(copy / str(step) / name)
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        with Checkpoints(copy, read_only=True) as checkpoints:
            try:
                state, meta = checkpoints.restore(make_state(), step)
            except T2GError as error:
                refused.append(str(error))
            else:
                assert_same(state, expected)
                assert meta["phase"] == ("sft" if step == 3 else "rltf")
                assert meta == META | {"phase": meta["phase"]}
        shutil.rmtree(copy)
    assert len(refused) >= 6
    assert all(f"step {step} in {tmp_path}/copy is damaged" in error for error in refused)
    gc.collect()


def test_every_bit_of_an_array_counts():
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8):
        x = np.asarray(jnp.arange(6, dtype=dtype))
        bits = x.view(np.uint8).copy()
        whole = int(bit_sum(jnp.asarray(x)))
        for i in range(bits.size * 8):
            flipped = bits.copy()
            flipped[i // 8] ^= 1 << (i % 8)
            assert int(bit_sum(jnp.asarray(flipped.view(x.dtype)))) != whole


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("devices", [1, 8])
def test_order_shape_and_type_count_on_any_mesh(rng, dtype, devices):
    x = np.asarray(jnp.asarray(rng.integers(0, 2, (16, 4)), dtype))
    others = [x[::-1], x[:, ::-1], x.T.reshape(x.shape), x.reshape(4, 16), x.astype(np.float16)]

    def sums(*arrays):
        return [of_arrays({"w": a})["w"] for a in arrays]

    (whole,) = sums(placed({"w": x}, devices)["w"])
    assert sums(x) == sums(jnp.asarray(x)) == [whole]
    assert whole not in sums(*others, *placed({"w": list(map(np.array, others))}, 1)["w"])
    assert whole != int(bit_sum(x))  # which knows nothing of shapes and types


def test_keys_and_pairs_of_arrays_count_in_order():
    a, b = jax.random.key(1), jax.random.key(2)
    keys = of_arrays({"k": jnp.stack([a, b])})
    assert keys != of_arrays({"k": jnp.stack([b, a])})
    x, y = jnp.ones(3), jnp.zeros(3)
    assert of_arrays({"x": x, "y": y}) != of_arrays({"x": y, "y": x})


def test_checkpoints_without_checksums_are_damaged(copy):
    shutil.rmtree(copy / "5" / "checksums")
    with Checkpoints(copy, read_only=True) as checkpoints:
        for read in (
            lambda: checkpoints.restore(make_state()),
            checkpoints.meta,
            checkpoints.fingerprint,
        ):
            with pytest.raises(
                T2GError, match=r"step 5 .*its checksums are missing.*go back to step 3"
            ):
                read()
        assert_same(checkpoints.restore(make_state(), 3)[0], make_state(3))


def test_a_fingerprint_stands_for_parameters_alone(saved, tmp_path):
    with Checkpoints(saved, read_only=True) as checkpoints:
        first, other = checkpoints.fingerprint(3), checkpoints.fingerprint()
    assert first == other  # of the same parameters, on another mesh, with another meta
    state = make_state()
    moved = jax.tree.map(lambda x: x[::-1], state.params)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state.replace(params=moved), {})
        assert checkpoints.fingerprint() != first


PATHS = ["[lr=1e-4]", "a [b] *c?", "back\\slash", "gs:", "100% #1 ~", "new\nline", "é\udcff"]


@pytest.mark.parametrize("name", PATHS)
def test_folders_of_any_name(tmp_path, name):
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)  # what a pattern would find instead
    directory = tmp_path / name / "checkpoints"
    state = make_state()
    for steps in ((1, 2), (3,)):
        with Checkpoints(directory) as checkpoints:
            for step in steps:
                checkpoints.save(step, state, META)
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.steps == [2, 3]
        assert_same(checkpoints.restore(state)[0], state)
    assert sorted(path.name for path in directory.iterdir()) == ["2", "3", MARKER]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_first_step_is_read_back(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c")
    real = type(checkpoints._manager).save

    def rotting(self, step, *args, **kwargs):
        saved = real(self, step, *args, **kwargs)
        self.wait_until_finished()
        for file in arrays(tmp_path / "c" / str(step)):
            file.write_bytes(file.read_bytes()[::-1])
        return saved

    monkeypatch.setattr(type(checkpoints._manager), "save", rotting)
    with pytest.raises(T2GError, match=r"step 1 in .* is damaged"):
        checkpoints.save(1, make_state(), META)
    checkpoints.close()


@pytest.mark.parametrize("async_", [True, False])
def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, async_):
    """A limit on the size of files stands for it: writes fail in the middle, as with no space."""
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (1 << 16,))}}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state, {})

    def save_another():
        with Checkpoints(tmp_path / "c", async_=async_) as checkpoints:
            checkpoints.save(2, jax.tree.map(lambda x: x + 1, state), {})
            checkpoints.wait()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(T2GError, match=r"could not be written to .*/c \(.*make room .*step 1$"):
            save_another()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps == [1]
        assert_same(checkpoints.restore(state)[0], state)
        checkpoints.save(2, state, {})
        assert checkpoints.steps == [1, 2]


def test_half_deleted_steps_are_never_seen(tmp_path):
    """Killed while an old step is deleted: it was moved away first."""
    with Checkpoints(tmp_path / "c", keep_last=1) as checkpoints:
        checkpoints.save(1, small(1), {})
        checkpoints.wait()
        checkpoints._clear_deleted = lambda: None  # the process is gone before it can
        checkpoints.save(2, small(2), {})
        checkpoints.wait()
        assert [p.name for p in (tmp_path / "c" / "deleted").iterdir()] == ["1"]
    shutil.rmtree(tmp_path / "c" / "deleted" / "1" / "meta")
    with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
        assert checkpoints.steps == [2]
    with Checkpoints(tmp_path / "c", keep_best=("reward", "max")) as checkpoints:
        assert checkpoints.steps == [2]
    assert not (tmp_path / "c" / "deleted").exists()
