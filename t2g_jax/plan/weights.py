"""Parameters that are not there: their shapes on the mesh, which is all that a plan needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding

from t2g_jax.models import heads, lora
from t2g_jax.parallel.sharding import state_shardings
from t2g_jax.run.weights import Weights
from t2g_jax.run.workspace import SFT


@dataclasses.dataclass(frozen=True)
class AbstractWeights(Weights):
    """What `Weights` would make, load and place, as shapes; a leaf that is shared is one object."""

    def initial(self) -> heads.Params:
        return self._shapes(lambda key: heads.init_params(self.model, key))

    def trained(
        self, phase: str, with_heads: Sequence[str] = (), step: int | None = None
    ) -> heads.Params:
        rank = 0 if phase == SFT else self.config.lora.rank

        def init(key: jax.Array) -> heads.Params:
            params = heads.init_params(self.model, key, heads=tuple(with_heads))
            return lora.add_adapters(params, key, rank=rank) if rank else params

        return lora.split(self._shapes(init))[0]

    def class_weights(self) -> tuple[float, float, float]:
        return self.config.reward_model.class_weights

    def with_adapters(self, params: heads.Params, phase: str) -> heads.Params:
        rank = self.config.lora.rank
        if not rank:
            return params
        adapted = self._shapes(lambda p: lora.add_adapters(p, jax.random.key(0), rank=rank), params)
        # What was there before is not a second copy.
        return lora.join(lora.split(adapted)[0], params)

    def place(self, params: heads.Params) -> heads.Params:
        def abstract(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            there = isinstance(x, jax.ShapeDtypeStruct) and x.sharding == sharding
            return x if there else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(abstract, params, state_shardings(params, self.mesh))

    def frozen(self, params: heads.Params) -> heads.Params:
        if self.config.lora.rank:
            return params
        computed = self._shapes(super().frozen, params)
        # What has that type already is not a second copy.
        return jax.tree.map(lambda new, x: x if new.dtype == x.dtype else new, computed, params)

    def _shapes(self, init: Callable[..., heads.Params], *given: Any) -> heads.Params:
        return self.place(jax.eval_shape(init, *(given or (jax.random.key(0),))))
