"""Methods: how experience becomes rows. The rows then meet the one objective and the one step."""

from __future__ import annotations

from t2g_jax import user_code
from t2g_jax.deprecation import keep_old_names
from t2g_jax.errors import T2GError
from t2g_jax.methods.base import (
    Method,
    MethodExperience,
    SupervisedMethod,
    Trajectory,
    answer_row,
    update_plan,
)
from t2g_jax.methods.grpo import GRPO
from t2g_jax.methods.grpo_multiturn import GRPOMultiTurn
from t2g_jax.methods.policy import PolicyMethod
from t2g_jax.methods.ppo import PPO
from t2g_jax.methods.rejection_sampling import RejectionSampling
from t2g_jax.methods.rltf import RLTFFeedbackModeling, RLTFSelfDistillation
from t2g_jax.methods.text2grad import Text2Grad
from t2g_jax.run.context import Context
from t2g_jax.training.state import TrainState

__all__ = [
    "GRPO",
    "PPO",
    "GRPOMultiTurn",
    "Method",
    "MethodExperience",
    "PolicyMethod",
    "RLTFFeedbackModeling",
    "RLTFSelfDistillation",
    "RejectionSampling",
    "SupervisedMethod",
    "Text2Grad",
    "Trajectory",
    "answer_row",
    "collect_guarded",
    "make_method",
    "update_plan",
]

keep_old_names(__name__, {"RLTFFeedbackModelling": "RLTFFeedbackModeling"})

_METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Text2Grad,
        PPO,
        RLTFSelfDistillation,
        RLTFFeedbackModeling,
        GRPO,
        GRPOMultiTurn,
        RejectionSampling,
    )
}


def make_method(name: str, context: Context) -> Method:
    """The method of that name, with what it needs from the earlier phases loaded.

    Raises:
      T2GError: one of these phases is not complete; or a method from outside cannot be made.
    """
    outside = context.config.outside.get(name)
    if outside is None:
        return _METHODS[name](context)
    made: Method = user_code.call(f"{name}: {outside.__name__}(context) failed", outside, context)
    for attribute in ("config", "params", "plan", "scores", "reference", "reward_model"):
        if not hasattr(made, attribute):
            raise T2GError(
                f"{name}: {outside.__name__}(context) has no {attribute!r}"
                f"{user_code.defined(outside.collect)}; make it a subclass of "
                "t2g_jax.methods.Method, and call super().__init__(context)"
            )
    return made


def collect_guarded(method: Method, state: TrainState, step: int) -> MethodExperience:
    """What `collect` of a method from outside returns.

    Raises:
      T2GError: it fails, or returns something else; the message says where in its file.
    """
    what = f"{method.name}: collect of {type(method).__name__}"
    found = user_code.call(f"{what} failed", method.collect, state, step)
    if not isinstance(found, MethodExperience):
        raise T2GError(
            f"{what} returned {user_code.shown(found)}; return a t2g_jax.methods.MethodExperience"
        )
    return found
