"""A 1B shape in bfloat16 on a GPU: how much of it updates and decoding use, beside torch."""

from __future__ import annotations

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.measure import Section, Turns, in_turns
from benchmarks.twins import generate, shape, twins
from benchmarks.update import OPTIMIZER, objective, policy_batch, torch_update
from t2g_jax.config import MeshConfig
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.parallel.sharding import make_mesh, state_shardings
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.sampler import sample
from t2g_jax.training.batch import micro_batches
from t2g_jax.training.state import TrainState, make_optimizer
from t2g_jax.training.step import make_update

PEAKS = {
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.0e12),
    "L40S": (362e12, 0.86e12),
    "L4": (121e12, 0.3e12),
}
"""Peak operations a second of bfloat16 products without sparsity, and bytes a second of memory."""

LLAMA_1B = {
    "vocab_size": 128_256,
    "width": 2048,
    "layers": 16,
    "heads": 32,
    "kv_heads": 8,
    "head_width": 64,
    "mlp_width": 8192,
}


def measure(*, small: bool = False) -> Section:
    title = "On a GPU"
    device = jax.devices()[0]
    if device.platform != "gpu" and not small:
        return Section(title, "There is no GPU that JAX can use: nothing was measured.", [], [])
    config = shape(small=small, dtype=jnp.bfloat16, remat="full", **({} if small else LLAMA_1B))
    kind = device.device_kind
    flops, bandwidth = next((PEAKS[name] for name in PEAKS if name in kind), (None, None))
    rows, length, prompt, new = (2, 8, 4, 4) if small else (4, 4096, 128, 128)
    updates = _update(config, rows, length, turns=1 if small else 7)
    decoding = _decode(config, 2 if small else 32, prompt, new, turns=1 if small else 5)
    operations = rows * length * _update_operations(config, length)
    table = [
        _row("update", "≥ 45 %", updates, operations, flops, 1e12, "TFLOP/s"),
        _row("decoding", "≥ 50 %", decoding, new * _decode_bytes(config), bandwidth, 1e9, "GB/s"),
    ]
    text = f"""
{config.layers} layers × {config.width}, vocabulary {config.vocab_size:,}, bfloat16, on {kind}.
Update: {rows} × {length:,} tokens, float32 parameters and optimizer, torch under autocast; counted
are 6 operations for each parameter and token, and attention. Decoding: {new} tokens after
{prompt}; only the bytes of the weights are counted, once a token; prefill is part of the time.
Shares are of the data sheet.
"""
    header = ["", "t2g_jax", "share", "target", "torch", "share", "times faster"]
    return Section(title, text, header, table)


def _row(
    name: str, target: str, taken: Turns, work: float, peak: float | None, scale: float, unit: str
):
    cells = []
    for seconds in (taken.ours, taken.theirs):
        rate = work / statistics.median(seconds)
        cells += [f"{rate / scale:,.1f} {unit}", f"**{rate / peak:.0%}**" if peak else "?"]
    return [name, *cells[:2], target, *cells[2:], taken.row("", "")[3]]


def _update(config: DecoderConfig, rows: int, length: int, *, turns: int) -> Turns:
    params, model = twins(config)
    batch = policy_batch(rows, length, config.vocab_size)
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    optimizer = make_optimizer(OPTIMIZER, updates=1000)
    state = TrainState.create(params, optimizer)
    state = jax.device_put(state, state_shardings(state, mesh))
    update = make_update(config, objective(), optimizer, mesh, state)
    theirs = torch_update(model.to(_torch_device()), batch)

    def ours():
        nonlocal state
        state, _ = update(state, micro_batches(batch, 1))
        jax.block_until_ready(state)

    def in_bfloat16():
        with torch.autocast(_torch_device(), dtype=torch.bfloat16):
            theirs()

    return in_turns(ours, in_bfloat16, turns=turns, warm_up=2)


def _decode(config: DecoderConfig, rows: int, prompt: int, new: int, *, turns: int) -> Turns:
    params, model = twins(config)
    model = model.to(_torch_device(), torch.bfloat16)
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, (rows, prompt), np.int32)
    theirs = torch.tensor(tokens, dtype=torch.long, device=_torch_device())
    keys = jax.random.split(jax.random.key(0), rows)
    lengths, sampling = np.full(rows, prompt, np.int32), Sampling(new, stop_ids=())

    def ours():
        out = sample(params, tokens, lengths, keys, config=config, sampling=sampling)
        jax.device_get(out)

    return in_turns(ours, lambda: generate(model, theirs, new).cpu(), turns=turns, warm_up=2)


def _torch_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _matrices(config: DecoderConfig) -> int:
    """Parameters that every token is multiplied with, LM head included."""
    heads = 2 * config.heads + 2 * config.kv_heads
    layer = config.width * (heads * config.head_width + 3 * config.mlp_width)
    return config.layers * layer + config.width * config.vocab_size


def _update_operations(config: DecoderConfig, length: int) -> float:
    """Floating-point operations of forward and backward pass for each token."""
    attention = 6 * config.layers * length * config.heads * config.head_width  # causal: half of 12
    return 6.0 * _matrices(config) + attention


def _decode_bytes(config: DecoderConfig) -> int:
    return 2 * _matrices(config)
