"""Methods: how experience becomes rows. The rows then meet the one objective and the one step."""

from __future__ import annotations

from t2g_jax.config import Method as MethodName
from t2g_jax.methods.base import Method
from t2g_jax.phases.context import Context

__all__ = ["Method", "make_method"]


def make_method(name: MethodName, context: Context) -> Method:
    """The method of that name, with what it needs from the earlier phases loaded."""
    match name:
        case "text2grad":
            from t2g_jax.methods.text2grad import Text2Grad as Chosen
        case "rltf-sd":
            from t2g_jax.methods.rltf import RLTFSelfDistillation as Chosen
        case "grpo":
            from t2g_jax.methods.grpo import GRPO as Chosen
    return Chosen(context)
