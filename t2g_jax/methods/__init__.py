"""Methods: how experience becomes rows. The rows then meet the one objective and the one step."""

from __future__ import annotations

from collections.abc import Callable

from t2g_jax.config import Method as MethodName
from t2g_jax.methods.base import Method
from t2g_jax.methods.grpo import GRPO
from t2g_jax.methods.grpo_multiturn import GRPOMultiTurn
from t2g_jax.methods.ppo import PPO
from t2g_jax.methods.rejection_sampling import RejectionSampling
from t2g_jax.methods.rltf import RLTFFeedbackModeling, RLTFSelfDistillation
from t2g_jax.methods.text2grad import Text2Grad
from t2g_jax.run.context import Context

__all__ = [
    "GRPO",
    "PPO",
    "GRPOMultiTurn",
    "Method",
    "RLTFFeedbackModeling",
    "RLTFSelfDistillation",
    "RejectionSampling",
    "Text2Grad",
    "make_method",
]

_METHODS: dict[MethodName, Callable[[Context], Method]] = {
    "text2grad": Text2Grad,
    "ppo": PPO,
    "rltf-sd": RLTFSelfDistillation,
    "rltf-fm": RLTFFeedbackModeling,
    "grpo": GRPO,
    "grpo-multiturn": GRPOMultiTurn,
    "rejection-sampling": RejectionSampling,
}


def make_method(name: MethodName, context: Context) -> Method:
    """The method of that name, with what it needs from the earlier phases loaded.

    Raises:
      T2GError: one of these phases is not complete.
    """
    return _METHODS[name](context)
