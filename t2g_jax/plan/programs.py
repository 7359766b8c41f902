"""The step functions that the phases of a config run, with abstract inputs on a mesh.

They are those of the phases themselves: a method is made as `t2g run` makes it, but in a context
whose parameters are shapes. Rows are as long as `model.context_length`, no two in one batch row:
what a run needs at most.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from t2g_jax.config import Config
from t2g_jax.errors import T2GError
from t2g_jax.methods import make_method
from t2g_jax.models import heads, lora
from t2g_jax.parallel.shapes import LENGTH_BUCKET, bucket, round_up
from t2g_jax.parallel.sharding import (
    ROWS,
    batch_sharding,
    parts,
    rows_sharding,
    state_shardings,
)
from t2g_jax.phases import reward_model, sft
from t2g_jax.phases.pipeline import phases
from t2g_jax.plan import work
from t2g_jax.plan.weights import AbstractWeights
from t2g_jax.run import pretrained
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import UpdatePlan
from t2g_jax.run.workspace import ANNOTATE, REWARD_MODEL, SFT
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.sampler import sample
from t2g_jax.training.batch import Batch, Teacher
from t2g_jax.training.forward import ANY_LOGITS, CUTOFFS, Need
from t2g_jax.training.sequences import Field
from t2g_jax.training.state import TrainState, make_optimizer
from t2g_jax.training.step import make_update, score

EVALUATE = "evaluate"


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled function of a phase.

    lower: traces it. inputs: bytes of its arguments on one device, by kind. resident: of what else
    the phase keeps there meanwhile. inside: of what is among its temporaries for sure, by kind.
    loop: how often a loop runs at most that ends when it likes.
    """

    phase: str
    name: str
    shape: str
    lower: Callable[[], Any]
    inputs: dict[str, float]
    resident: dict[str, float]
    inside: dict[str, float]
    work: work.Work
    loop: int = 1


@dataclasses.dataclass(frozen=True)
class _PlannedContext(Context):
    """A context without files, whose parameters are shapes on the mesh."""

    @classmethod
    def planned(cls, config: Config, mesh: Mesh) -> _PlannedContext:
        vocabulary = 0 if config.model.pretrained else config.tokenizer.vocabulary_size
        return cls(
            config=config,
            workspace=None,
            task=None,
            judge=None,
            tokenizer=None,
            model=pretrained.decoder_config(config, vocabulary),
            mesh=mesh,
        )

    @property
    def sampling(self) -> Sampling:
        return Sampling(stop_ids=(0,), **dataclasses.asdict(self.config.sampling))

    @functools.cached_property
    def weights(self) -> AbstractWeights:
        return AbstractWeights(self.config, None, self.model, self.mesh, self.keys)


def programs(config: Config, mesh: Mesh, only: str | None = None) -> Iterator[Program]:
    """What `t2g run` would run, phase by phase; or `only` a phase.

    Raises:
      T2GError: the run has no such phase.
    """
    context = _PlannedContext.planned(config, mesh)
    chosen = [*phases(config), EVALUATE]
    if only is not None and only not in chosen:
        raise T2GError(f"--only {only}: the phases of this config are {', '.join(chosen)}")
    for phase in chosen if only is None else [only]:
        if phase == SFT:
            if config.sft.steps:
                start = context.weights.initial()
                rows = config.sft.batch_size
                yield _update(context, SFT, start, sft.update_plan(config), rows, [])
        elif phase == ANNOTATE:
            rows = config.annotate.batch_size
            yield _sample(context, ANNOTATE, context.weights.load(), rows, [])
        elif phase == REWARD_MODEL:
            yield from _reward_model(context)
        elif phase == EVALUATE:
            settings = config.evaluate
            prompts = min(settings.batch_size, config.task.test_size)
            rows = prompts * settings.samples_per_prompt
            yield _sample(context, EVALUATE, context.weights.load(), rows, [])
        else:
            yield from _method(context, phase)


def _reward_model(context: _PlannedContext) -> Iterator[Program]:
    config = context.config
    params = reward_model.starting_params(context)
    plan, rows = reward_model.update_plan(config, 1), config.reward_model.batch_size
    yield _update(context, REWARD_MODEL, params, plan, rows, [])
    yield _spans(context, REWARD_MODEL, params, rows, [])


def _method(context: _PlannedContext, name: Any) -> Iterator[Program]:
    """A round: sample, score under reference and policy, mark spans, update."""
    method = make_method(name, context)
    start = context.weights.with_adapters(method.params, name)
    trained, _ = lora.split(start)
    # The state begins as a copy.
    policy = lora.join(jax.tree.map(_copy, trained), lora.split(start)[1])
    config, plan = method.config, method.plan
    rows = config.prompts_per_step * config.group_size
    at_once = min(rows, config.rows_at_once or rows)
    optimizer = make_optimizer(plan.optimizer, 100)
    state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), lora.split(policy)[0])
    state = _on(state, context.mesh)
    kept = [state.opt_state]
    reference, model = method.reference, method.reward_model
    if reference is not None:
        kept.append(reference.params)
    if model is not None:
        kept.append(model.params)
    yield _sample(context, name, policy, at_once, kept)
    if reference is not None and not reference.is_full:
        beside = [*kept, policy]
        words, needs = "score (reference)", Need.UNTRUNCATED
        yield _score(context, name, words, reference.params, needs, at_once, beside)
    for words, needs in method.scores.items():
        other = reference.params if reference is not None and reference.is_full else None
        yield _score(context, name, words, policy, needs, at_once, kept, other)
    if model is not None:
        yield _spans(context, name, model.params, at_once, [*kept, policy])
    learned = -(-config.rows_per_step // plan.minibatches)
    yield _update(context, name, start, plan, learned, kept[1:])


# --- Each function -----------------------------------------------------------------------------


def _update(
    context: _PlannedContext,
    phase: str,
    params: heads.Params,
    plan: UpdatePlan,
    rows: int,
    kept: list[Any],
) -> Program:
    mesh, model, micro = context.mesh, context.model, plan.micro_batches
    objective = plan.objective
    trained, frozen = lora.split(params)
    optimizer = make_optimizer(plan.optimizer, 100)
    carry: dict[str, Any] = {name: np.float32(value) for name, value in plan.carry.items()}
    state = _on(jax.eval_shape(lambda p: TrainState.create(p, optimizer, carry), trained), mesh)
    rows = round_up(rows, parts(mesh, *ROWS) * micro)
    length = _length(context)
    sharding = batch_sharding(mesh, micro_batched=True)
    shape = (micro, rows // micro, length)
    batch = _batch(shape, objective.fields, sharding, teacher=Need.TEACHER in objective.needs)

    def lower() -> Any:
        update: Any = make_update(model, objective, optimizer, mesh, state, frozen)
        return update.lower(state, batch, frozen) if frozen else update.lower(state, batch)

    gradients = _bytes(
        jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), state.params
        )
    )
    inputs = {
        "weights": _bytes(state.params) + _bytes(frozen),
        "optimizer": _bytes(state.opt_state),
        "batch": _bytes(batch),
    }
    done = work.update_work(
        model,
        params,
        mesh,
        rows=rows,
        length=length,
        micro_batches=micro,
        with_logits=bool(objective.needs & ANY_LOGITS),
        state_bytes=_bytes(state.params) + _bytes(state.opt_state),
        gradient_bytes=gradients,
        passes_over_head=2 if objective.truncated and Need.UNTRUNCATED in objective.needs else 1,
    )
    return Program(
        phase,
        "update",
        f"{micro} × [{rows // micro}, {length}]",
        lower,
        inputs,
        _resident(kept, [frozen]),
        {"gradients": gradients + (_bytes(state.params) if micro > 1 else 0.0)},
        done,
    )


def _score(
    context: _PlannedContext,
    phase: str,
    name: str,
    params: heads.Params,
    needs: Need,
    rows: int,
    kept: list[Any],
    reference: heads.Params | None = None,
) -> Program:
    """A pass of a policy over its rows; with a reference, one of that, too."""
    truncated = context.sampling.truncates and bool(needs & (Need.LOGPROBS | Need.ENTROPY))
    batch, shape, rows, length = _scored(context, rows, (CUTOFFS,) if truncated else ())
    of_head = [Need.LOGPROBS | Need.ENTROPY, Need.REFERENCE_KL]
    # Without truncation those are the same log-probabilities.
    of_head = (
        [*of_head, Need.UNTRUNCATED] if truncated else [of_head[0] | Need.UNTRUNCATED, of_head[1]]
    )
    passes = [
        work.forward_work(
            context.model,
            read,
            context.mesh,
            rows=rows,
            length=length,
            heads=1 if read is reference else sum(bool(needs & kind) for kind in of_head),
        )
        for read in (params, reference)
        if read is not None
    ]
    inputs = {"weights": _bytes(params), "batch": _bytes(batch)}
    if reference is not None:
        inputs["reference"] = _bytes_of_others(reference, params)
    return Program(
        phase,
        name,
        shape,
        lambda: score.lower(
            params,
            batch,
            needs,
            model=context.model,
            temperature=context.config.sampling.temperature,
            mesh=context.mesh,
            reference=reference,
        ),
        inputs,
        _resident(kept, [params, reference]),
        {},
        functools.reduce(operator.add, passes),
    )


def _spans(
    context: _PlannedContext, phase: str, params: heads.Params, rows: int, kept: list[Any]
) -> Program:
    batch, shape, rows, length = _scored(context, rows)
    return Program(
        phase,
        "span scoring",
        shape,
        lambda: score.lower(
            params,
            batch,
            Need.SPAN_LOGITS,
            model=context.model,
            class_weights=context.weights.class_weights(),
            mesh=context.mesh,
        ),
        {"weights": _bytes(params), "batch": _bytes(batch)},
        _resident(kept, [params]),
        {},
        work.forward_work(context.model, params, context.mesh, rows=rows, length=length, heads=0),
    )


def _sample(
    context: _PlannedContext, phase: str, params: heads.Params, rows: int, kept: list[Any]
) -> Program:
    mesh, model, sampling = context.mesh, context.model, context.sampling
    policy = {name: tree for name, tree in params.items() if name in ("decoder", "lm_head")}
    rows = round_up(rows, parts(mesh, *ROWS, "context"))
    new = sampling.max_new_tokens
    longest = context.config.model.context_length - new
    width = bucket([range(longest)], most=longest)
    sharding = rows_sharding(mesh)

    def abstract(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    inputs = (
        abstract((rows, width), jnp.int32),
        abstract((rows,), jnp.int32),
        abstract((rows,), keys.dtype),
    )
    return Program(
        phase,
        "sample",
        f"[{rows}, {width} + {new}]",
        lambda: sample.lower(policy, *inputs, config=model, sampling=sampling, mesh=mesh),
        {"weights": _bytes(params), "batch": _bytes(inputs[:2])},
        _resident(kept, [params]),
        {"KV cache": work.cache_bytes(model, mesh, rows, width + new)},
        work.sampling_work(model, params, mesh, rows=rows, prompt=width, new=new),
        loop=new - 1,
    )


# --- Shapes ------------------------------------------------------------------------------------


def _length(context: Context) -> int:
    """The longest rows, as `parallel.shapes.bucket` rounds them."""
    multiple = np.lcm(LENGTH_BUCKET, parts(context.mesh, "context"))
    return round_up(context.config.model.context_length, int(multiple))


def _scored(
    context: Context, rows: int, fields: Sequence[Field] = ()
) -> tuple[Batch, str, int, int]:
    rows, length = round_up(rows, parts(context.mesh, *ROWS)), _length(context)
    batch = _batch((rows, length), fields, batch_sharding(context.mesh))
    return batch, f"[{rows}, {length}]", rows, length


def _batch(
    shape: tuple[int, ...],
    fields: Sequence[Field],
    sharding: NamedSharding,
    *,
    teacher: bool = False,
) -> Batch:
    def array(dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    structure = {
        name: array(jnp.int32) for name in ("tokens", "targets", "positions", "segment_ids")
    }
    return Batch(
        **structure,
        fields={field.name: array(jnp.float32) for field in fields},
        teacher=Teacher(**structure, slots=array(jnp.int32)) if teacher else None,
    )


def _on(state: TrainState, mesh: Mesh) -> TrainState:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        state_shardings(state, mesh),
    )


def _copy(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _bytes(tree: Any) -> float:
    """On one device."""
    return float(sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(tree)))


def _leaf_bytes(leaf: Any) -> int:
    sharding = leaf.sharding
    shape = sharding.shard_shape(leaf.shape) if isinstance(sharding, NamedSharding) else leaf.shape
    return int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize


def _bytes_of_others(tree: Any, counted: Any) -> float:
    """Bytes of the leaves that are not among those counted already."""
    known = {id(leaf) for leaf in jax.tree.leaves(counted)}
    return _bytes([leaf for leaf in jax.tree.leaves(tree) if id(leaf) not in known])


def _resident(kept: list[Any], arguments: list[Any]) -> dict[str, float]:
    """What stays on a device beside a function's arguments; shared arrays once."""
    counted = {id(leaf) for leaf in jax.tree.leaves(arguments)}
    total = 0.0
    for leaf in jax.tree.leaves(kept):
        if id(leaf) not in counted:
            counted.add(id(leaf))
            total += _leaf_bytes(leaf)
    return {"kept beside": total} if total else {}
