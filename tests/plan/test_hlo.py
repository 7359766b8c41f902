"""What collectives of a compiled program send, counted in programs whose traffic is known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t2g_jax.plan.hlo import collective_bytes, cycles


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def compiled(mesh, function, shape, spec, out):
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    placed = NamedSharding(mesh, out)
    return jax.jit(function, out_shardings=placed).lower(x).compile().as_text()


def test_all_gather(mesh):
    text = compiled(mesh, lambda x: x * 2, (64, 32), P("x"), P())
    assert collective_bytes(text) == {"all-gather": pytest.approx(64 * 32 * 4 * 7 / 8)}


def test_all_reduce(mesh):
    text = compiled(mesh, lambda x: x.sum(0), (64, 32), P("x"), P())
    assert collective_bytes(text) == {"all-reduce": pytest.approx(2 * 32 * 4 * 7 / 8)}


def test_loops_count_as_often_as_they_run(mesh):
    """Five times a loop of three."""

    def step(x, _):
        return jax.lax.with_sharding_constraint(x * 2, NamedSharding(mesh, P())).sum(0) + x, None

    def inner(x, _):
        return jax.lax.scan(step, x, None, length=3)[0], None

    one = compiled(mesh, lambda x: step(x, None)[0], (64, 32), P("x"), P("x"))
    looped = compiled(
        mesh, lambda x: jax.lax.scan(inner, x, None, length=5)[0], (64, 32), P("x"), P("x")
    )
    once = sum(collective_bytes(one).values())
    assert once > 0
    assert sum(collective_bytes(looped).values()) == pytest.approx(15 * once)


def test_a_loop_that_ends_when_it_likes(mesh):
    """Counted as often as the caller says that it runs at most."""

    def body(carry):
        x, total = carry
        return x * 2, total + jax.lax.with_sharding_constraint(x.sum(0), NamedSharding(mesh, P()))

    def loop(x):
        def unfinished(carry):
            return (carry[1].sum() < 100) & (carry[1].max() < 9)

        return jax.lax.while_loop(unfinished, body, (x, jnp.zeros(32)))[1]

    text = compiled(mesh, loop, (64, 32), P("x"), P())
    once, often = (sum(collective_bytes(text, unknown_trips=n).values()) for n in (1, 11))
    assert often == pytest.approx(11 * once)


TPU = """\
HloModule jit_f

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8]{0:T(256)} get-tuple-element(%p), index=1
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %kernel = f32[8]{0:T(256)} custom-call(%x), backend_config={"custom_call_config": {"body":
 "lines of its own"
}}, metadata={op_name="kernel"}
  %start = (f32[8]{0:T(256)}, f32[8]{0:T(256)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%kernel), channel_id=7, source_target_pairs={{0,1},{1,0}}
  %done = f32[8]{0:T(256)} collective-permute-done(%start), \
backend_config={"estimated_cycles":"50"}
  ROOT %t = (s32[]{:T(128)}, f32[8]{0:T(256)}) tuple(%next, %done)
}

%condition (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %n = s32[]{:T(128)} constant(8)
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}

ENTRY %main (a: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  ROOT %w = (s32[]{:T(128)}, f32[8]{0:T(256)}) while(%a), condition=%condition, body=%body
}
"""


def test_text_as_tpus_have_it():
    """A counter that grows by two, a kernel with lines of its own, and an asynchronous permute."""
    assert collective_bytes(TPU) == {"collective-permute": 4 * 8 * 4}
    assert cycles(TPU) == 4 * 50


def test_cycles_that_the_compiler_does_not_know():
    """It writes a number near 2^63, which is no estimate: then there is none."""
    text = """HloModule x

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0), backend_config={"estimated_cycles":"1000"}
  ROOT %a = f32[4]{0} add(%p, %p), backend_config={"estimated_cycles":"KNOWN"}
}
"""
    assert cycles(text.replace("KNOWN", "234")) == 1234
    assert cycles(text.replace("KNOWN", "9223372036854775807")) == 0
