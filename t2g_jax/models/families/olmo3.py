"""OLMo 3: OLMo 2 with a window in three layers of four; only the others' frequencies are stretched.

arXiv 2512.13961.
"""

from t2g_jax.models import config_rope
from t2g_jax.models.families import olmo2
from t2g_jax.models.families.base import Family, windows

FAMILY = Family(
    model_types=("olmo3",),
    names=olmo2.FAMILY.names,
    particular=lambda hf: olmo2.FAMILY.particular(hf) | windows(hf),
    ropes=config_rope.read_by_kind,
    required={"hidden_act": "silu", "sliding_window_pattern": 4},
)
