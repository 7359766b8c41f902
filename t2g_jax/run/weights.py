"""The parameters that phases begin with and leave: made, loaded, placed on the mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from t2g_jax.config import Config
from t2g_jax.errors import T2GError
from t2g_jax.models import heads, lora
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.parallel.sharding import state_shardings
from t2g_jax.run import pretrained, provenance
from t2g_jax.run.keys import Keys
from t2g_jax.run.workspace import REWARD_MODEL, SFT, Workspace, best_by, command
from t2g_jax.runtime import hosts
from t2g_jax.training.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters of one model of a run; the reward model may have another."""

    config: Config
    workspace: Workspace
    model: DecoderConfig
    mesh: Mesh
    keys: Keys

    def load(
        self, phase: str = SFT, *, with_heads: Sequence[str] = (), step: int | None = None
    ) -> heads.Params:
        """The parameters that a complete phase left, on the mesh, with the named heads.

        They are its last, or those of a `step` whose checkpoint was kept (see `best_step`). With
        LoRA they are the warm start, one copy for all phases, and what the phase trained.

        Raises:
          T2GError: the phase is not complete, was trained with other adapters, or what is there is
            not what it left, or not what it was trained on.
        """
        if self.config.lora.rank == 0:
            return self.trained(phase, with_heads, step)
        if phase == SFT and not with_heads:
            return self._warm_start
        return lora.join(self.trained(phase, with_heads, step), self._warm_start)

    def class_weights(self) -> tuple[float, float, float]:
        """What the classes weighed when the reward model was trained, as its phase recorded it.

        Raises:
          T2GError: it is not complete.
        """
        trained_with = self.workspace.summary(REWARD_MODEL).get("class_weights")
        poor, neutral, good = trained_with or self.config.reward_model.class_weights
        return poor, neutral, good

    def best_step(self, phase: str) -> int | None:
        """The step of a method that is to answer, if it is not the last: `evaluate.checkpoint`.

        Raises:
          T2GError: the method kept no best checkpoint.
        """
        if phase == SFT or self.config.evaluate.checkpoint == "last":
            return None
        self.workspace.summary(phase)
        directory, by = self.workspace.checkpoints(phase), best_by(self.config)
        with Checkpoints(directory, read_only=True, keep_best=by) as checkpoints:
            best = checkpoints.best_step
        if best is None:
            raise T2GError(
                f"no checkpoint in {directory} has the metric "
                f"{self.config.checkpoint.keep_best!r} (checkpoint.keep_best) to choose the best "
                "by; set evaluate.checkpoint to last"
            )
        return best

    def initial(self) -> heads.Params:
        """What the warm start begins with, on the mesh: the pretrained model, or random weights."""
        return pretrained.params(self.config, self.model, self.mesh, self.keys.key("init"))

    @functools.cached_property
    def _warm_start(self) -> heads.Params:
        return self.trained(SFT)

    def trained(
        self, phase: str, with_heads: Sequence[str] = (), step: int | None = None
    ) -> heads.Params:
        """What a complete phase trained, as `load`: with LoRA its adapters and heads alone."""
        summary = self.workspace.summary(phase)
        source = self.config.model.pretrained
        if phase == SFT and self.config.sft.steps == 0:
            if source == self.workspace.config.model.pretrained:
                made_by, key = SFT, "model.pretrained"
            else:  # the reward model reads with a model of its own
                made_by, key = REWARD_MODEL, "reward_model.pretrained"
            if self.workspace.is_complete(made_by):
                hosts.broadcast_from_primary(
                    lambda: provenance.require_base(self.workspace, made_by, key, source)
                )
            return self.initial()
        rank = 0 if phase == SFT else self.config.lora.rank
        found = summary.get("lora_rank", 0)
        if found != rank:
            raise T2GError(
                f"{self.workspace.phase(phase)} was trained with lora.rank {found}, the config has "
                f"{rank}: set lora.rank to {found}, or train it again in another --workdir"
            )

        if rank:  # adapters mean nothing on other weights
            hosts.broadcast_from_primary(lambda: provenance.require_fit(self.workspace, [phase]))

        def shapes(key: jax.Array) -> heads.Params:
            params = heads.init_params(self.model, key, heads=tuple(with_heads))
            return lora.split(lora.add_adapters(params, key, rank=rank) if rank else params)[0]

        abstract = self.place(jax.eval_shape(shapes, jax.random.key(0)))
        directory = self.workspace.checkpoints(phase)
        try:
            with Checkpoints(
                directory, read_only=True, async_=False, made_by=command(phase)
            ) as checkpoints:
                last = hosts.broadcast_from_primary(
                    lambda: provenance.last_step(self.workspace, phase)
                )
                left = hosts.broadcast_from_primary(
                    lambda: provenance.artifact(self.workspace, phase)
                )
                if checkpoints.fingerprint(last) != left:
                    raise T2GError(f"{directory} does not hold what {phase} was complete with")
                return checkpoints.restore_params(abstract, last if step is None else step)[0]
        except T2GError as error:
            folder = self.workspace.phase(phase)
            raise T2GError(
                f"{error}. {phase} counts as complete; to have it done again, delete {folder} and "
                f"run `{command(phase)} CONFIG`. To go on from an earlier checkpoint, delete "
                f"{folder / 'complete.json'}, too, and run the same"
            ) from error

    def frozen(self, params: heads.Params) -> heads.Params:
        """Parameters that learn no more, in the type that they are computed in: half of float32.

        With LoRA as they are, since they share arrays with those that learn.
        """
        if self.config.lora.rank:
            return params
        policy = {name: tree for name, tree in params.items() if name in ("decoder", "lm_head")}
        return params | heads.as_computed(policy, self.model)

    def with_adapters(self, params: heads.Params, phase: str) -> heads.Params:
        """The parameters that a phase starts from, with adapters if there is LoRA."""
        settings = self.config.lora
        if settings.rank == 0:
            return params
        key = self.keys.key(f"{phase}/lora")
        params = self.place(lora.add_adapters(params, key, rank=settings.rank))
        if settings.pretrained is None:
            return params
        return pretrained.adapters(self.config, self.model, params)

    def place(self, params: heads.Params) -> heads.Params:
        """Parameters, or their shapes, with the shardings of the mesh."""
        shardings = state_shardings(params, self.mesh)
        if isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct):
            return jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings
            )
        return hosts.place(params, shardings)
