"""Keys of config.json: read as `transformers` reads them, of no consequence, or refused by name."""

import json
from typing import Any

import numpy as np
import pytest
from hf_models import MIXED, YARN, make, our_logits, their_logits

from t2g_jax.errors import T2GError
from t2g_jax.models import families, huggingface

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
}
KINDS = "llama mistral qwen2 qwen3 qwen3_moe gemma2 gemma3_text olmo2 olmo3".split()


def described(folder, kind, **keys):
    (folder / "config.json").write_text(json.dumps(SIZES | {"model_type": kind} | keys))
    return families.read_config(folder)


# Keys that configurations on the hub have and that change nothing, several of each sort.
PUBLISHED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"_name_or_path": "me/model", "pretraining_tp": 1, "use_cache": False}),
    ("llama", {"is_llama_config": True, "rope_interleaved": False}),  # SmolLM2
    ("llama", {"transformers.js_config": {"dtype": "q4"}, "torch_dtype": "bfloat16"}),
    ("llama", {"unsloth_fixed": True, "unsloth_version": "2025.3", "pad_token_id": 7}),
    ("llama", {"max_length": 4096, "temperature": 0.6, "top_p": 0.9, "do_sample": True}),
    ("llama", {"max_sequence_length": 4096, "attention_dropout": 0.1, "initializer_range": 0.04}),
    ("llama", {"id2label": {"0": "a"}, "label2id": {"a": 0}, "problem_type": None}),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling.LlamaForCausalLM"}}),
    ("llama", {"architectures": ["LlamaForCausalLM"], "transformers_version": "4.31.0.dev0"}),
    ("llama", {"logits_scaling": 1.0, "residual_multiplier": 1, "partial_rotary_factor": 1.0}),
    ("llama", {"quantization_config": None, "rope_scaling": None, "pruned_heads": {}}),
    ("mistral", {"sliding_window": None, "head_dim": 16, "attention_bias": False}),
    ("qwen2", {"use_mrope": False, "use_sliding_window": False, "sliding_window": 8}),
    ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 262144}, "max_window_layers": 28}),
    ("qwen3", {"layer_types": ["full_attention"] * 4, "sliding_window": None}),
    ("qwen3_moe", {"qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0}),
    ("qwen3_moe", {"router_aux_loss_coef": 0.001, "output_router_logits": False}),
    ("qwen3_moe", {"num_experts": 8, "norm_topk_prob": True, "mlp_only_layers": []}),
    ("gemma2", {"hidden_act": "gelu", "cache_implementation": "hybrid"}),
    ("gemma2", {"sliding_window_size": 4096, "query_pre_attn_scalar": 144}),
    ("gemma3_text", {"sliding_window_pattern": 6, "rope_local_base_freq": 10000}),
    ("gemma3_text", {"attn_logit_softcapping": None, "final_logit_softcapping": 30.0}),
    ("gemma3_text", {"_sliding_window_pattern": 6, "use_bidirectional_attention": False}),
    ("olmo2", {"attention_bias": False, "rope_theta": 500000, "eos_token_id": 100257}),
    ("olmo3", {"layer_types": [*MIXED, "full_attention"], "sliding_window": 8}),
]


@pytest.mark.parametrize(("kind", "keys"), PUBLISHED)
def test_what_configurations_on_the_hub_have_is_accepted(kind, keys, tmp_path):
    described(tmp_path, kind, **keys)


COMPUTED: dict[str, Any] = {
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0078125,
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "logit_scale": 0.0625,
    "clip_qkv": 8.0,
    "is_causal": False,
    "rope_interleaved": True,
    "use_mrope": True,
    "no_rope_layers": [1, 1, 1, 0],
    "position_embedding_type": "alibi",
    "per_layer_config": {"0": {"rms_norm_eps": 1.0}},
    "shared_expert_intermediate_size": 128,
    "num_nextn_predict_layers": 1,
    "qk_layernorm": True,
    "a_key_of_tomorrow": "on",
}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3_moe", "gemma3_text", "olmo2"])
@pytest.mark.parametrize("key", COMPUTED)
def test_a_key_that_may_change_what_is_computed_is_refused(kind, key, tmp_path):
    with pytest.raises(T2GError, match=rf"config\.json: {key} is .*the decoder does not know it"):
        described(tmp_path, kind, **{key: COMPUTED[key]})


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("mistral", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("qwen2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar is 144"),
        ("olmo2", {"use_qk_norm": True}, "use_qk_norm is true"),
        ("qwen3", {"use_qk_norm": False}, "use_qk_norm is False; only True"),
        ("llama", {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; only"),
        ("gemma2", {"sliding_window_pattern": 3}, "sliding_window_pattern is 3"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0.0; must be a"),
        ("gemma3_text", {"final_logit_softcapping": -1.0}, "final_logit_softcapping is -1.0; must"),
        ("gemma2", {"attn_logit_softcapping": 1e-40}, "attn_logit_softcapping is 1e-40, too small"),
        ("gemma3_text", {"final_logit_softcapping": 1e39}, "final_logit_softcapping is 1e.39, too"),
        ("gemma2", {"query_pre_attn_scalar": 10**30}, "query_pre_attn_scalar is 10+, too large"),
        ("llama", {"rms_norm_eps": 1e-60}, "rms_norm_eps is 1e-60, too small for float32"),
        ("qwen3", {"rms_norm_eps": 1e39}, r"rms_norm_eps is 1e\+39, too large for float32"),
        ("llama", {"rope_theta": 1e39}, r"rope_theta is 1e\+39, too large for float32"),
        ("llama", {"rope_scaling": YARN | {"factor": 1e-40}}, "factor is 1e-40, too small"),
        ("llama", {"rope_scaling": YARN | {"attention_factor": 1e40}}, "attention_factor is 1e"),
        (
            "llama",
            {"rope_scaling": YARN | {"mscale": 1e40, "mscale_all_dim": 1.0}},
            r"rope_parameters: mscale is 1e\+40, too large for float32",
        ),
        ("mistral", {"layer_types": [*MIXED, MIXED[0]]}, "model_type is 'ministral'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; must be 1"),
        ("olmo3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; must be 1"),
        ("gemma3_text", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; must be 1"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; at most 10000"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": None, "layer_types": [*MIXED, MIXED[0]]},
            "layer_types has sliding_attention, but sliding_window is null",
        ),
    ],
)
def test_a_key_of_another_family_is_refused_where_it_would_count(kind, keys, message, tmp_path):
    with pytest.raises(T2GError, match=message):
        described(tmp_path, kind, **keys)


def test_keys_beside_the_text_of_a_model_that_sees(tmp_path):
    whole = {"model_type": "gemma3", "text_config": SIZES, "mm_tokens_per_image": 4}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(whole))
    assert families.read_config(tmp_path).tie_embeddings
    for odd in ({"logit_scale": 2.0}, {"text_config": SIZES | {"logit_scale": 2.0}}):
        file.write_text(json.dumps(whole | odd))
        with pytest.raises(T2GError, match=r"logit_scale is 2\.0"):
            families.read_config(tmp_path)
    # Whether the LM head is the embeddings is said of the whole.
    file.write_text(json.dumps(whole | {"text_config": SIZES | {"tie_word_embeddings": False}}))
    assert families.read_config(tmp_path).tie_embeddings
    file.write_text(json.dumps(whole | {"tie_word_embeddings": False}))
    assert not families.read_config(tmp_path).tie_embeddings


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"\(gptq, 4 bits\)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"\(awq, 4 bits\)"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"\(fp8\)"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            r"\(bitsandbytes, 4 bits\)",
        ),
        ({"quantization_config": {"_load_in_8bit": True}}, r"\(8 bits\)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, r"quantization \(MLX, 4 bits\)"),
        ({"compression_config": {"format": "pack"}}, "compression_config"),
    ],
)
def test_compressed_weights_are_refused_in_words(keys, said, tmp_path):
    with pytest.raises(T2GError, match=rf"{said}.*compressed.*bfloat16"):
        described(tmp_path, "llama", **keys)


ROPE = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (ROPE | {"truncate": False}, "truncate is False; must be True"),
        (ROPE | {"temperature": 2.0}, "temperature is 2.0, which is not known of rope_type 'yarn'"),
        (ROPE | {"mrope_section": [2, 3, 3]}, "mrope_section"),
        (ROPE | {"finetuned": False}, "finetuned is False"),
        (ROPE | {"beta_fast": 1, "beta_slow": 32}, "beta_slow 32.0 is not below beta_fast 1.0"),
        (ROPE | {"factor": "4"}, "factor is '4'; must be a number above 0"),
        (ROPE | {"factor": True}, "factor is True; must be a number"),
        (ROPE | {"factor": -1.0}, "factor is -1.0; must be a number above 0"),
        (ROPE | {"rope_type": "default"}, "type is 'yarn', rope_type 'default'"),
        (LLAMA3 | {"high_freq_factor": 1.0}, "low_freq_factor 1.0 is not below 1.0"),
        (LLAMA3 | {"attention_factor": 1.2}, "attention_factor is 1.2"),
        ({"type": "linear", "factor": 2.0, "low_freq_factor": 1}, "low_freq_factor is 1"),
        ({"rope_type": "default", "factor": 2.0}, "factor is 2.0"),
        ({"type": "dynamic", "factor": 2.0}, "rope_type is 'dynamic'"),
        ({"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}, "longrope"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
    ],
)
def test_what_the_decoder_does_not_know_of_frequencies_is_refused(scaling, message, tmp_path):
    with pytest.raises(T2GError, match=rf"config\.json.*{message}"):
        described(tmp_path, "llama", rope_scaling=scaling)


@pytest.mark.parametrize(
    ("kind", "keys", "positions"),
    [
        ("llama", {}, 512),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
        ("qwen2", {"rope_scaling": ROPE | {"original_max_position_embeddings": 512}}, 2048),
        ("qwen2", {"rope_scaling": ROPE}, 512),
        ("llama", {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 256}}, 512),
        ("mistral", {"sliding_window": 8}, 512),
    ],
)
def test_the_longest_row_that_a_model_is_made_for(kind, keys, positions, tmp_path):
    assert described(tmp_path, kind, **keys).positions == positions


STRAY: list[tuple[str, dict[str, Any]]] = [
    ("llama3", {"sliding_window": 4, "layer_types": MIXED, "use_sliding_window": True}),
    ("llama3", {"original_max_position_embeddings": 16}),
    ("olmo2", {"sliding_window": 4, "max_window_layers": 1, "qkv_bias": True}),
    ("mistral", {"use_sliding_window": False, "max_window_layers": 0, "attention_bias": True}),
    ("qwen2", {"attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"sliding_window": 4, "max_window_layers": 1, "qkv_bias": True, "mlp_bias": True}),
    ("qwen3-moe", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 2}),
    ("qwen3-moe", {"sliding_window": 4, "use_sliding_window": True, "layer_types": MIXED}),
    ("gemma2", {"hidden_act": "silu", "head_dim": 8, "use_sliding_window": False}),
    ("olmo3", {"rope_parameters": None, "rope_theta": 50.0, "rope_scaling": YARN}),
]


@pytest.mark.parametrize(("variant", "keys"), STRAY)
def test_a_key_that_a_family_does_not_read_makes_no_difference(variant, keys, tmp_path):
    pytest.importorskip("torch", reason="pip install torch, to compare with `transformers`")
    make(variant, tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    config = families.read_config(tmp_path)
    params = huggingface.load(tmp_path, config)
    text = np.random.default_rng(0).integers(3, 96, 24)
    rows = text[None], np.arange(24)[None], np.ones((1, 24), int)
    ours = np.asarray(our_logits(params, *rows, config=config))[0]
    np.testing.assert_allclose(ours, their_logits(theirs.eval(), text), rtol=1e-4, atol=1e-4)
