"""Gemma 3, and the language model of its larger versions that see: arXiv 2503.19786.

Gemma 2 with normalized queries and keys in place of soft-caps, and five layers with a window, which
have their own rotary frequencies, to one without.
"""

from t2g_jax.models import config_rope
from t2g_jax.models.families import gemma2
from t2g_jax.models.families.base import QUERY_KEY_NORM, Family

FAMILY = Family(
    model_types=("gemma3_text", "gemma3"),
    names=gemma2.NAMES | QUERY_KEY_NORM,
    particular=lambda hf: gemma2.particular(hf) | {"query_key_norm": "head"},
    ropes=config_rope.read_by_kind,
    reads=(
        *gemma2.READS,
        "rope_local_base_freq",
        "sliding_window_pattern",
        "_sliding_window_pattern",
    ),
    required={
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": False,
        "attn_logit_softcapping": None,  # `transformers` has the key, and does not compute it
    },
    prefixes={
        "language_model.": "",
        "model.language_model.": "model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
    ignored=("vision_tower.", "multi_modal_projector."),
)
