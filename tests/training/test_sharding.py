"""The table of shardings: complete, checked, and followed by the optimizer's moments."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t2g_jax.config import MeshConfig, OptimizerConfig
from t2g_jax.errors import T2GError
from t2g_jax.models import heads, lora
from t2g_jax.parallel.sharding import (
    AXES,
    FSDP,
    batch_sharding,
    decoding_shardings,
    head_spread,
    heads_shardings,
    logits_sharding,
    lookup_sharding,
    make_mesh,
    param_specs,
    parts,
    path_name,
    rows_sharding,
    state_shardings,
    token_sharding,
    vocab_shards,
)
from t2g_jax.training.state import TrainState, make_optimizer

BOTH = ("value_head", "span_head")


def shapes(model, **kwargs):
    return jax.eval_shape(lambda: heads.init_params(model, jax.random.key(0), **kwargs))


def by_path(tree):
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: isinstance(x, P | NamedSharding))
    return {path_name(path): leaf for path, leaf in leaves}


# ------------------------------------------------------------------ meshes


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((-1, 1, 1, 1), (8, 1, 1, 1)),
        ((8, 1, 1, 1), (8, 1, 1, 1)),
        ((1, -1, 1, 1), (1, 8, 1, 1)),
        ((2, 2, 1, -1), (2, 2, 1, 2)),
        ((1, 2, -1, 2), (1, 2, 2, 2)),
        ((1, 4, 1, 2), (1, 4, 1, 2)),
        ((2, -1, 1, 4), (2, 1, 1, 4)),
    ],
)
def test_meshes(asked, expected):
    mesh = make_mesh(MeshConfig(*asked))
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == expected
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 4


def test_a_mesh_of_some_devices():
    assert make_mesh(MeshConfig(), jax.devices()[:2]).devices.shape == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            (2, 1, 1, 1),
            "mesh data=2, fsdp=1, context=1, tensor=1 needs 2 devices, there are 8: set mesh.data",
        ),
        ((4, 2, 2, 1), "needs 16 devices, there are 8"),
        ((-1, 3, 1, 1), "mesh data=-1, fsdp=3, .* needs a multiple of 3 devices, there are 8"),
        ((-1, 1, 16, 1), "needs a multiple of 16 devices, there are 8"),
    ],
)
def test_meshes_that_do_not_fit_say_how_many_devices(asked, message):
    with pytest.raises(T2GError, match=message):
        make_mesh(MeshConfig(*asked))


@dataclasses.dataclass(frozen=True)
class Chip:
    """What arranging devices looks at."""

    id: int
    platform: str
    device_kind: str
    slice_index: int
    process_index: int
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def tpus(slices):
    """Slices of 2 × 4 TPU v5e, four chips to a process."""
    return [
        Chip(8 * s + i, "tpu", "TPU v5 lite", s, 2 * s + i // 4, (i % 2, i // 2, 0))
        for s in range(slices)
        for i in range(8)
    ]


@pytest.mark.parametrize("asked", [(-1, 1, 1, 1), (2, 4, 1, 2), (-1, 2, 2, 2), (4, 4, 1, 1)])
def test_only_the_data_axis_crosses_tpu_slices(asked):
    devices = make_mesh(MeshConfig(*asked), tpus(2)).devices
    of_slice = np.vectorize(lambda chip: chip.slice_index)(devices)
    for part in of_slice:
        assert len(np.unique(part)) == 1
    assert sorted(chip.id for chip in devices.flat) == list(range(16))


def test_an_axis_that_would_cross_tpu_slices_is_refused():
    with pytest.raises(T2GError, match=r"data axis \(1\) must be a multiple of the 2 TPU slices"):
        make_mesh(MeshConfig(1, 16, 1, 1), tpus(2))


def test_the_devices_of_a_process_lie_together():
    """On the inner axes, in whatever order they are reported."""
    gpus = [Chip(i, "gpu", "NVIDIA H200", i // 4, i // 4) for i in range(16)]
    devices = make_mesh(MeshConfig(2, 2, 1, 4), gpus[::-1]).devices
    for group in devices.reshape(4, 4):
        assert len({gpu.process_index for gpu in group}) == 1
    # Several hosts are no TPU slices: fsdp may go over their network.
    assert make_mesh(MeshConfig(1, 16, 1, 1), gpus).devices.shape == (1, 16, 1, 1)


# ------------------------------------------------------------------ parameters


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("names", [(), BOTH])
def test_every_parameter_has_a_rule(model, tied, names):
    model = dataclasses.replace(model, tie_embeddings=tied)
    params = shapes(model, heads=names)
    specs = by_path(param_specs(params))
    assert specs.keys() == by_path(params).keys()
    whole = {path for path, spec in specs.items() if not any(spec)}
    assert all(path.endswith("/scale") or "_head/out/" in path for path in whole)
    assert ("lm_head/kernel" in specs) == (not tied)


@pytest.mark.parametrize(
    "features",
    [
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
        {"query_key_norm": "head", "post_norm": True},
        {"query_key_norm": "all", "pre_norm": False, "post_norm": True},
        {"experts": 4, "experts_per_token": 2},
    ],
)
def test_what_some_families_have_has_a_rule(model, mesh_of, features):
    """All that is large is spread over every axis but data."""
    params = shapes(dataclasses.replace(model, **features))
    mesh = mesh_of(1, 2, 2, 2)
    shardings = by_path(state_shardings(params, mesh))
    assert len(shardings) > len(by_path(shapes(model)))
    for path, leaf in by_path(params).items():
        parts = math.prod(leaf.shape) // math.prod(shardings[path].shard_shape(leaf.shape))
        if path.endswith(("/scale", "out/bias", "down/bias")):
            assert parts == 1, path
        elif path.endswith("/bias"):
            assert parts == 2, path
        elif path.endswith("/router"):
            assert parts == 4, path
        else:
            assert parts == 8, path


def test_an_unmatched_parameter_is_named(model):
    params = shapes(model) | {"adapter": {"kernel": jnp.zeros((3, 4))}}
    with pytest.raises(T2GError, match=r"no sharding rule matches .* adapter/kernel .* \(3, 4\)"):
        param_specs(params)


@pytest.mark.parametrize(
    "spec", [P("fsdp", "fsdp"), P(("data", "fsdp"), "fsdp"), P(None, None, "fsdp")]
)
def test_a_rule_that_does_not_fit_is_named(spec):
    with pytest.raises(T2GError, match=r"rule 'kernel\$' .* does not fit dense/kernel"):
        param_specs({"dense": {"kernel": jnp.zeros((8, 8))}}, rules=((r"kernel$", spec),))


def test_the_first_rule_that_matches_wins():
    rules = ((r"a/kernel$", P("fsdp")), (r"kernel$", P(None, "tensor")))
    params = {"a": {"kernel": jnp.zeros((4, 4))}, "b": {"kernel": jnp.zeros((4, 4))}}
    specs = by_path(param_specs(params, rules))
    assert specs == {"a/kernel": P("fsdp"), "b/kernel": P(None, "tensor")}


@pytest.mark.parametrize(
    "shape", [(8, 1, 1, 1), (1, 8, 1, 1), (1, 2, 1, 4), (2, 2, 1, 2), (1, 2, 2, 2)]
)
def test_large_parameters_are_spread_over_all_axes_but_data(model, mesh_of, shape):
    mesh = mesh_of(*shape)
    model = dataclasses.replace(model, heads=8, kv_heads=4, mlp_width=32, tie_embeddings=False)
    params = shapes(model)
    shardings = by_path(state_shardings(params, mesh))
    for path, leaf in by_path(params).items():
        parts = math.prod(leaf.shape) // math.prod(shardings[path].shard_shape(leaf.shape))
        assert parts == (1 if path.endswith("/scale") else math.prod(shape[1:])), path


def test_adapters_lie_as_their_kernels(model):
    """Inputs of A and outputs of B as those of the kernel, the rank whole."""
    params = shapes(model)
    adapted = jax.eval_shape(lambda p: lora.add_adapters(p, jax.random.key(0), rank=3), params)
    specs = by_path(param_specs(adapted))
    leaves = by_path(adapted)
    found = 0
    for path, leaf in leaves.items():
        if not path.endswith("/lora_a"):
            continue
        found += 1
        kernel, a, b = (
            [*specs[name], *[None] * leaves[name].ndim][: leaves[name].ndim]
            for name in (path.replace("lora_a", other) for other in ("kernel", "lora_a", "lora_b"))
        )
        assert a == [*kernel[: leaf.ndim - 1], None], path
        assert b == [None, None, *kernel[leaf.ndim - 1 :]], path
    assert found == 7


def test_an_axis_that_does_not_divide_is_left_whole(model, mesh_of):
    """Two key heads on four devices: each holds both."""
    shardings = by_path(state_shardings(shapes(model), mesh_of(1, 2, 1, 4)))
    assert shardings["decoder/layers/attention/query/kernel"].spec == P(None, FSDP, "tensor", None)
    assert shardings["decoder/layers/attention/key/kernel"].spec == P(None, FSDP, None, None)
    odd = {"a": {"kernel": jnp.zeros((6, 8))}}
    rules = ((r"kernel$", P(("data", "fsdp"), "tensor")),)

    def spec(*shape):
        return by_path(state_shardings(odd, mesh_of(*shape), rules))["a/kernel"].spec

    assert spec(1, 2, 1, 4) == P(("data", "fsdp"), "tensor")
    assert spec(2, 2, 1, 2) == P("data", "tensor")  # 6 = 2 · 3: fsdp is left out
    assert spec(4, 2, 1, 1) == P(None, "tensor")


# ------------------------------------------------------------------ states


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 4, 1)])
def test_moments_lie_as_their_parameters(model, mesh_of, name, shape):
    optimizer = make_optimizer(OptimizerConfig(name=name), 10)
    carry = {"kl_coefficient": jnp.float32(0.1)}
    state = jax.eval_shape(
        lambda params: TrainState.create(params, optimizer, carry), shapes(model, heads=BOTH)
    )
    placed = by_path(state_shardings(state, mesh_of(*shape)))
    leaves = by_path(state)
    assert placed.keys() == leaves.keys()
    followed = set()
    for path, leaf in leaves.items():
        owner = next((p for p in leaves if p.startswith("params/") and path.endswith(p[6:])), None)
        if owner is not None and leaf.shape == leaves[owner].shape:
            assert placed[path] == placed[owner], path
            followed |= {owner} - {path}
        else:
            assert placed[path].is_fully_replicated, path
    assert followed == {path for path in leaves if path.startswith("params/")}
    assert "carry/kl_coefficient" in placed


def test_parameters_alone_lie_as_in_a_state(model, mesh_of):
    mesh, params = mesh_of(2, 2, 1, 2), shapes(model)
    state = jax.eval_shape(
        lambda params: TrainState.create(params, make_optimizer(OptimizerConfig(), 10)), params
    )
    assert state_shardings(params, mesh) == state_shardings(state, mesh).params


# ------------------------------------------------------------------ batches


def test_where_batches_lie(mesh_of):
    """Rows over data and fsdp, each over context; micro-batches come one after the other."""
    mesh = mesh_of(2, 1, 2, 2)
    rows = jax.device_put(np.zeros((8, 6)), batch_sharding(mesh))
    assert rows.sharding.shard_shape((8, 6)) == (4, 3)
    assert batch_sharding(mesh, micro_batched=True).shard_shape((5, 8, 6)) == (5, 4, 3)
    assert batch_sharding(mesh).shard_shape((8, 6, 16)) == (4, 3, 16)  # the residual stream
    assert parts(mesh, "data", "fsdp", "context") == 4
    assert parts(mesh) == 1


def test_sampled_rows_are_whole(mesh_of):
    """Over all axes but tensor: while sampling there is no row to be cut."""
    assert rows_sharding(mesh_of(2, 1, 2, 2)).shard_shape((8, 6)) == (2, 6)


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (1, 2, 2, 2), (2, 2, 1, 2)])
def test_while_decoding_products_widen_to_parts_and_narrow_from_them(model, mesh_of, shape):
    mesh = mesh_of(*shape)
    near = math.prod(shape[1:])
    sizes = {"heads": 8, "head_width": 8, "mlp_width": 32}
    model = dataclasses.replace(model, tie_embeddings=False, **sizes)

    def adapted(key):
        return lora.add_adapters(heads.init_params(model, key), key, rank=3)

    params = jax.eval_shape(adapted, jax.random.key(0))
    leaves, shardings = by_path(params), by_path(decoding_shardings(params, mesh))
    split = {
        path: tuple(
            int(whole // part)
            for whole, part in zip(leaf.shape, shardings[path].shard_shape(leaf.shape), strict=True)
        )
        for path, leaf in leaves.items()
    }
    attention, mlp = "decoder/layers/attention", "decoder/layers/mlp"
    assert split["lm_head/kernel"] == (1, near)
    assert split[f"{attention}/query/kernel"] == (1, 1, near, 1)
    assert split[f"{attention}/query/lora_a"] == (1, 1, 1)
    assert split[f"{attention}/query/lora_b"] == (1, 1, near, 1)
    assert split[f"{attention}/out/kernel"] == (1, near, 1, 1)
    assert split[f"{attention}/out/lora_a"] == (1, near, 1, 1)
    assert split[f"{attention}/out/lora_b"] == (1, 1, 1)
    assert split[f"{mlp}/up/kernel"] == split[f"{mlp}/gate/kernel"] == (1, 1, near)
    assert split[f"{mlp}/down/kernel"] == (1, near, 1)
    # Too few heads for all devices: over tensor, and the width of each over the others.
    tensor = shape[-1]
    assert split[f"{attention}/key/kernel"] == (1, 1, tensor, near // tensor)
    stored = by_path(state_shardings(params, mesh))
    assert shardings["decoder/embed/embedding"] == stored["decoder/embed/embedding"]


def test_while_decoding_what_does_not_divide_stays_where_it_is_stored(model, mesh_of):
    model = dataclasses.replace(model, heads=3, kv_heads=3, head_width=6, mlp_width=30)
    params, mesh = shapes(model), mesh_of(1, 4, 1, 2)
    assert by_path(decoding_shardings(params, mesh)) == by_path(state_shardings(params, mesh))


def test_heads_go_to_their_rows(mesh_of):
    def parts_of(mesh, heads, kv_heads, width):
        found = heads_shardings(mesh, heads, kv_heads, width)
        return [s.shard_shape((16, 1, heads, width)) for s in found]

    mesh = mesh_of(2, 2, 1, 2)
    assert parts_of(mesh, 8, 4, 6) == [(8, 1, 2, 6), (4, 1, 4, 6)]
    assert parts_of(mesh, 2, 2, 6) == [(8, 1, 1, 3), (4, 1, 1, 6)]
    assert parts_of(mesh, 3, 3, 6) == [(8, 1, 3, 6), (4, 1, 3, 6)]
    assert logits_sharding(mesh, 64).shard_shape((16, 64)) == (8, 16)
    assert logits_sharding(mesh, 63).shard_shape((16, 63)) == (8, 63)
    assert token_sharding(mesh).shard_shape((16, 1, 6)) == (8, 1, 6)


def test_how_the_lm_head_is_read(mesh_of):
    spread = head_spread(jax.ShapeDtypeStruct((16, 64), jnp.float32), mesh_of(1, 2, 2, 2))
    assert spread.kernel.shard_shape((16, 64)) == (4, 32)
    assert spread.chunk.shard_shape((16, 8)) == (16, 4)
    uneven = head_spread(jax.ShapeDtypeStruct((6, 63), jnp.float32), mesh_of(1, 2, 2, 2))
    assert uneven.kernel.shard_shape((6, 63)) == (3, 63)


def test_embeddings_are_looked_up_in_parts_of_their_width(mesh_of):
    mesh = mesh_of(2, 2, 2, 1)
    assert lookup_sharding(mesh, 16).shard_shape((8, 6, 16)) == (4, 6, 4)
    assert lookup_sharding(mesh, 15).shard_shape((8, 6, 15)) == (4, 6, 15)


def test_vocabulary_shards(mesh_of):
    assert vocab_shards(64, mesh_of(1, 2, 1, 4)) == 4
    assert vocab_shards(64, mesh_of(8, 1, 1, 1)) == 1
    assert vocab_shards(62, mesh_of(1, 2, 1, 4)) == 1
    assert vocab_shards(64, None) == 1
