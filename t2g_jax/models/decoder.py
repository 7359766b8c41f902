"""A decoder in Flax Linen that configuration makes a Llama, Mistral, Qwen, Gemma or OLMo.

RMSNorm, rotary positions, grouped-query attention, a gated MLP or a mixture of them;
`DecoderConfig` has what differs. Nothing here knows about losses or sampling, nor about a mesh more
than the sharding of the residual stream. One call serves training, prefill and decoding:

    hidden, fresh = Decoder(config).apply({"params": p}, tokens, positions, segment_ids, cache)

`fresh` holds the keys and values of just these tokens; whoever decodes writes them into its cache.
The decoder only reads the cache, so a decoding loop can update it in place.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.sharding import PartitionSpec as P

from t2g_jax.models.attention import AttentionSpec, Backend, attend, choose, make_masks
from t2g_jax.models.experts import mixture
from t2g_jax.models.rope import Rope, rotate
from t2g_jax.numerics import matrix_product
from t2g_jax.parallel.sharding import heads_shardings, left_over, parts

Array = jax.Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder. Hashable, so it can be a static argument of jitted functions."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    """Hidden width of the MLP; of each expert, if there are experts."""
    rope_theta: float = 10_000.0
    """For a plain `rope`; with stretched frequencies give `rope`."""
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    dtype: Any = jnp.float32
    """Type of activations and matrix products."""
    param_dtype: Any = jnp.float32
    """Type of parameters."""
    remat: Literal["none", "products", "full"] = "products"
    """What the backward pass finds: all activations; the layers' matrix products, from which it
    recomputes the rest; or only the layers' inputs."""
    lora_alpha: float = 32.0
    """Low-rank adapters, if the parameters have them, count alpha / rank; see `models.lora`."""
    attention: Backend = "auto"
    """The kernel, see `models.attention`."""
    positions: int | None = None
    """Length of the longest row it was made for; None: not known. Nothing is computed from this."""

    # What differs between families
    rope: Rope | None = None
    """None: plain, of `rope_theta`."""
    local_rope: Rope | None = None
    """Rotary embedding of layers with a window, where it is another."""
    window: int | None = None
    """Tokens that a local layer sees, itself included."""
    local_layers: tuple[bool, ...] = ()
    """Which layers have the window; empty: all if there is one."""
    pre_norm: bool = True
    """Attention and MLP read a normalized copy of the residual stream."""
    post_norm: bool = False
    """What they write to it is normalized."""
    norm_offset: float = 0.0
    """Norms multiply by this + scale."""
    query_key_norm: Literal["none", "head", "all"] = "none"
    """Queries and keys are normalized before rotation: each head, or all heads together."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    """Scores are multiplied by this. None: 1/√head_width."""
    attention_softcap: float = 0.0
    """Scores s become cap · tanh(s / cap); 0: they do not."""
    final_softcap: float = 0.0
    """Likewise the logits; whoever applies the LM head does that."""
    experts: int = 0
    """MLPs of a layer that a router chooses from. 0: one MLP, no router."""
    experts_per_token: int = 1
    normalize_experts: bool = True
    """The weights of a token's experts sum to 1."""

    def __post_init__(self):
        sizes = "vocab_size width layers heads kv_heads head_width mlp_width".split()
        for name in [*sizes, *(["window"] if self.window is not None else [])]:
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}; must be a whole number above 0")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} must be even for rotary positions")
        if self.local_layers and len(self.local_layers) != self.layers:
            raise ValueError(
                f"local_layers has {len(self.local_layers)} entries for {self.layers} layers"
            )
        if any(self.local_layers) and self.window is None:
            raise ValueError("local_layers needs a window")
        if self.experts and not 0 < self.experts_per_token <= self.experts:
            raise ValueError(
                f"experts_per_token={self.experts_per_token} must be in 1 … experts={self.experts}"
            )

    @property
    def locality(self) -> tuple[bool, ...]:
        """Which layers have the window."""
        return self.local_layers or (self.window is not None,) * self.layers

    @property
    def attention_spec(self) -> AttentionSpec:
        return AttentionSpec(self.attention_softcap, self.window if any(self.locality) else None)


@struct.dataclass
class Cache:
    """Keys and values of earlier tokens, and which sequence and position each slot belongs to.

    keys: [L, B, K, H, S] and values: [L, B, K, S, H], as attention reads them; positions and
    segment_ids: [B, S], segment 0 marks an empty slot.
    Slots need not be contiguous: rotary positions are already inside the keys.
    """

    keys: Array
    values: Array
    positions: Array
    segment_ids: Array

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, slots: int) -> Cache:
        shape = (config.layers, batch, config.kv_heads)
        keys = jnp.zeros((*shape, config.head_width, slots), config.dtype)
        values = jnp.zeros((*shape, slots, config.head_width), config.dtype)
        nothing = jnp.zeros((batch, slots), jnp.int32)
        return cls(keys, values, nothing, nothing)

    def write(
        self,
        fresh: tuple[Array, Array],
        positions: Array,
        segment_ids: Array,
        slot: Array | int,
    ) -> Cache:
        """Puts N tokens (keys [L, B, K, H, N], values [L, B, K, N, H]) at slots slot … slot+N−1."""
        keys, values = (x.astype(self.keys.dtype) for x in fresh)
        put = jax.lax.dynamic_update_slice_in_dim
        return Cache(
            put(self.keys, keys, slot, axis=4),
            put(self.values, values, slot, axis=3),
            put(self.positions, positions, slot, axis=1),
            put(self.segment_ids, segment_ids, slot, axis=1),
        )


class Decoder(nn.Module):
    """Tokens to hidden states (after the final norm, ready for any head)."""

    config: DecoderConfig
    sharding: jax.sharding.NamedSharding | None = None
    """How the residual stream [B, T, D] lies; None leaves it to the compiler."""
    lookup_sharding: jax.sharding.Sharding | None = None
    """How [B, T, D] lies before that, as it comes from the embedding."""
    decoding: bool = False
    """Over a mesh: whether T is 1 and weights lie as `parallel.sharding.DECODING` says; `sharding`
    is then `token_sharding`."""

    @nn.compact
    def __call__(
        self, tokens: Array, positions: Array, segment_ids: Array, cache: Cache | None = None
    ) -> tuple[Array, tuple[Array, Array]]:
        """Runs the layers.

        Args:
          tokens: [B, T] int32.
          positions: [B, T] int32, counted from 0 within each segment.
          segment_ids: [B, T] int32; tokens attend within their segment only, 0 marks padding.
          cache: earlier tokens that come before all of these, or None.

        Returns:
          hidden [B, T, D] in `config.dtype`, and (keys, values) as they are in `Cache`.
        """
        config = self.config
        embed = Embedding(
            config.vocab_size,
            config.width,
            embedding_init=nn.initializers.normal(0.02),
            param_dtype=config.param_dtype,
            name="embed",
        )
        x = embed(tokens).astype(config.dtype)
        if self.lookup_sharding is not None:
            x = jax.lax.with_sharding_constraint(x, self.lookup_sharding)
        if config.embedding_scale != 1:
            x *= jnp.asarray(config.embedding_scale, x.dtype)
        if self.sharding is not None:
            x = jax.lax.with_sharding_constraint(x, self.sharding)
        rope = config.rope or Rope(config.rope_theta)
        rotation = rope.rotation(positions, config.head_width)
        local_rotation = None
        if config.local_rope is not None:
            local_rotation = config.local_rope.rotation(positions, config.head_width)
        platform = (
            jax.default_backend()
            if self.sharding is None
            else self.sharding.mesh.devices.flat[0].platform
        )
        backend = choose(
            config.attention,
            config.attention_spec,
            platform=platform,
            length=tokens.shape[1],
            head_width=config.head_width,
            dtype=config.dtype,
            cached=cache is not None,
        )
        masks = make_masks(config.attention_spec, backend, positions, segment_ids, cache)
        earlier = None if cache is None else (cache.keys, cache.values)
        layer = Layer
        if config.remat != "none":
            # What is cheap takes longer to keep than to redo.
            kept = (
                jax.checkpoint_policies.dots_with_no_batch_dims_saveable
                if config.remat == "products"
                else None
            )
            layer = nn.remat(Layer, prevent_cse=False, policy=kept)
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0, 0),
            length=config.layers,
            # Looking for constants traces all layers twice; initial values depend on it.
            check_constancy_invariants=self.is_initializing(),
        )(config, self.sharding, self.decoding, backend, platform, name="layers")
        locality = jnp.array(config.locality)
        x, fresh = layers(x, rotation, local_rotation, masks, locality, earlier)
        return RMSNorm(config, name="final_norm")(x), fresh


class Embedding(nn.Embed):
    """Rows of a table, in its type; its gradient is summed in float32 even if that is bfloat16.

    There a sum of ones ends at 256, and some tokens come thousands of times in a batch.
    """

    def __call__(self, tokens):
        return _look_up(self.embedding, tokens)


@jax.custom_vjp
def _look_up(table: Array, tokens: Array) -> Array:
    return jnp.take(table, tokens, axis=0)


def _looked_up(table, tokens):
    return _look_up(table, tokens), (table, tokens)


def _sum_up(saved, gradient):
    table, tokens = saved
    total = jnp.zeros(table.shape, jnp.promote_types(table.dtype, jnp.float32))
    return total.at[tokens].add(gradient.astype(total.dtype)).astype(table.dtype), None


_look_up.defvjp(_looked_up, _sum_up)


class Layer(nn.Module):
    """Attention and a gated MLP, each on a normalized copy of the residual stream."""

    config: DecoderConfig
    sharding: jax.sharding.NamedSharding | None
    decoding: bool
    backend: str
    platform: str

    @nn.compact
    def __call__(self, x, rotation, local_rotation, masks, is_local, earlier):
        config = self.config
        if len(set(config.locality)) == 1:
            is_local = config.locality[0]  # known when compiled
        if local_rotation is not None:
            choice = functools.partial(jnp.where, is_local)
            rotation = jax.tree.map(choice, local_rotation, rotation)

        def placed(x):
            # While decoding the compiler must not be left to choose: it would gather weights.
            return jax.lax.with_sharding_constraint(x, self.sharding) if self.decoding else x

        def before(name, x):
            return placed(RMSNorm(config, name=f"{name}_norm")(x) if config.pre_norm else x)

        def after(name, x):
            return RMSNorm(config, name=f"{name}_out_norm")(x) if config.post_norm else x

        x = placed(x)
        attention = Attention(
            config, self.sharding, self.decoding, self.backend, self.platform, name="attention"
        )
        attended, fresh = attention(before("attention", x), rotation, masks, is_local, earlier)
        x = x + after("attention", attended)
        mlp = (
            Experts(config, self.sharding, name="mlp")
            if config.experts
            else MLP(config, self.sharding if self.decoding else None, name="mlp")
        )
        x = x + after("mlp", mlp(before("mlp", x)))
        return x, fresh


class Attention(nn.Module):
    """Grouped-query attention over these tokens and, if given, the cached earlier ones."""

    config: DecoderConfig
    sharding: jax.sharding.NamedSharding | None
    decoding: bool
    backend: str
    platform: str

    @nn.compact
    def __call__(self, x, rotation, masks, is_local, earlier):
        config = self.config
        project = functools.partial(_dense, config=config, use_bias=config.qkv_bias)
        q = project((config.heads, config.head_width), name="query")(x)
        k = project((config.kv_heads, config.head_width), name="key")(x)
        v = project((config.kv_heads, config.head_width), name="value")(x)
        if self.decoding:
            q, k, v = (self._moved(x) for x in (q, k, v))
        if config.query_key_norm != "none":
            q = self._normed(q, "query_norm")
            k = self._normed(k, "key_norm")
        q, k = rotate(q, rotation), rotate(k, rotation)
        scale = (
            config.head_width**-0.5 if config.attention_scale is None else config.attention_scale
        )
        mixed, fresh = attend(
            q * scale,
            k,
            v,
            masks,
            config.attention_spec,
            backend=self.backend,
            platform=self.platform,
            is_local=is_local,
            earlier=earlier,
            sharding=self.sharding,
        )
        if self.decoding:
            mixed = self._moved(mixed, back=True)
        out = _dense(
            config.width,
            config=config,
            axis=(-2, -1),
            use_bias=config.out_bias,
            sharding=self.sharding if self.decoding else None,
            name="out",
        )
        return out(mixed), fresh

    def _moved(self, x, *, back=False):
        """[B, 1, N, H] from where products have their heads to where attention has its rows."""
        heads, width = x.shape[2:]
        mesh: Any = self.sharding.mesh
        stops = heads_shardings(mesh, heads, self.config.kv_heads, width)
        for sharding in reversed(stops) if back else stops:
            x = jax.lax.with_sharding_constraint(x, sharding)
        return x

    def _normed(self, x, name):
        norm = RMSNorm(self.config, name=name)
        if self.config.query_key_norm == "head":
            return norm(x)
        return norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)


class MLP(nn.Module):
    """down(act(gate(x)) · up(x)), Shazeer, arXiv 2002.05202."""

    config: DecoderConfig
    sharding: jax.sharding.NamedSharding | None
    """How the result lies; None leaves it to the compiler."""

    @nn.compact
    def __call__(self, x):
        config = self.config
        dense = functools.partial(_dense, config=config, use_bias=config.mlp_bias)
        gate = dense(config.mlp_width, name="gate")(x)
        up = dense(config.mlp_width, name="up")(x)
        down = dense(config.width, sharding=self.sharding, name="down")
        return down(ACTIVATIONS[config.activation](gate) * up)


class Experts(nn.Module):
    """Many MLPs, of which each token goes through a few; see `models.experts`.

    Over a mesh, each device computes its own tokens with its part of every expert's channels.
    """

    config: DecoderConfig
    sharding: jax.sharding.NamedSharding | None

    @nn.compact
    def __call__(self, x):
        config = self.config
        initial = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", batch_axis=0, in_axis=1, out_axis=2
        )
        inside = (config.experts, config.width, config.mlp_width)
        outside = (config.experts, config.mlp_width, config.width)
        shapes = {"gate": inside, "up": inside, "down": outside}
        router_initial = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        router = (config.width, config.experts)
        weights = [
            self.param("router", router_initial, router, config.param_dtype),
            *(
                self.param(f"expert_{name}", initial, shape, config.param_dtype)
                for name, shape in shapes.items()
            ),
        ]
        weights = [weight.astype(config.dtype) for weight in weights]
        mix = functools.partial(
            mixture,
            chosen=config.experts_per_token,
            normalize=config.normalize_experts,
            activation=ACTIVATIONS[config.activation],
        )

        def of_rows(x, *weights):
            return mix(x.reshape(-1, x.shape[-1]), *weights).reshape(x.shape)

        if self.sharding is None:
            return of_rows(x, *weights)
        mesh, spec = self.sharding.mesh, self.sharding.spec
        channels = left_over(mesh, *spec)
        if config.mlp_width % parts(mesh, *channels):
            channels = ()

        def of_device(x, *weights):
            return (
                jax.lax.psum(of_rows(x, *weights), channels) if channels else of_rows(x, *weights)
            )

        wide = P(None, None, channels or None)
        return jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=(spec, P(), wide, wide, P(None, channels or None)),
            out_specs=spec,
        )(x, *weights)


class Linear(nn.DenseGeneral):
    """x W, and where the parameters have adapters x W + (α / r) (x A) B.

    "LoRA", Hu et al., arXiv 2106.09685, Eq. 3. r is read from the adapters' shape.
    """

    lora_alpha: float = 32.0
    sharding: jax.sharding.NamedSharding | None = None
    """How x W lies; None leaves it to the compiler."""

    @nn.compact
    def __call__(self, x):
        y = super().__call__(x)
        if self.sharding is not None:
            y = jax.lax.with_sharding_constraint(y, self.sharding)
        if not self.has_variable("params", "lora_a"):
            return y
        a: Array = self.get_variable("params", "lora_a").astype(self.dtype)
        b: Array = self.get_variable("params", "lora_b").astype(self.dtype)
        narrow = matrix_product(x, a, axes=a.ndim - 1)
        return y + self.lora_alpha / a.shape[-1] * matrix_product(narrow, b)


class RMSNorm(nn.Module):
    """x / rms(x) · (offset + scale), in float32; Zhang & Sennrich, arXiv 1910.07467."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x):
        offset = self.config.norm_offset
        initial = nn.initializers.constant(1 - offset)
        scale = self.param("scale", initial, (x.shape[-1],), self.config.param_dtype)
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), -1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(mean_square + self.config.norm_epsilon)
        return (normed * (offset + scale.astype(jnp.float32))).astype(self.config.dtype)


def _dense(features, *, config: DecoderConfig, name: str, use_bias: bool, axis=-1, sharding=None):
    return Linear(
        features,
        axis=axis,
        use_bias=use_bias,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
        dot_general=_product,
        lora_alpha=config.lora_alpha,
        sharding=sharding,
        name=name,
    )


def _product(x: Array, kernel: Array, dimensions, precision=None) -> Array:
    """What `nn.DenseGeneral` calls to sum over the last axes of x and the first of the kernel."""
    return matrix_product(x, kernel, axes=len(dimensions[0][1]), precision=precision)
