"""A tiny policy that is far from uniform, and prompts of different lengths."""

import jax
import numpy as np
import pytest

from t2g_jax.models import heads
from t2g_jax.models.decoder import DecoderConfig


@pytest.fixture(scope="session")
def model() -> DecoderConfig:
    return DecoderConfig(
        vocab_size=12,
        width=16,
        layers=2,
        heads=2,
        kv_heads=1,
        head_width=8,
        mlp_width=24,
        tie_embeddings=False,
    )


@pytest.fixture(scope="session")
def params(model):
    rng = np.random.default_rng(0)
    params = jax.device_get(heads.init_params(model, jax.random.key(0)))
    params["decoder"]["embed"]["embedding"] = np.float32(rng.normal(size=(12, 16)))
    params["lm_head"]["kernel"] = np.float32(rng.normal(0, 0.4, size=(16, 12)))
    return params


@pytest.fixture(scope="session")
def prompts():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 12, size).tolist() for size in (3, 9, 1, 6, 14, 2, 11, 4)]
