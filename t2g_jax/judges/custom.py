"""The judge that a config names: the task's own program, a model, or a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t2g_jax import factories, plugins
from t2g_jax.errors import T2GError
from t2g_jax.judges.batches import AnyJudge
from t2g_jax.tasks.base import CritiqueLevel, Task, require_capability, shown

OWN_JUDGE = "task"
"""Name of the task's own program: it costs nothing."""
POLICY = "policy"
"""Name of a judge that is a model on this machine, see `judges.policy`."""
OURS = (OWN_JUDGE, POLICY)


def make_judge(
    name: str, task: Task, level: CritiqueLevel, settings: Mapping[str, Any] | None = None
) -> AnyJudge:
    """The judge of a name.

    Args:
      name: "task", "policy", or "package.module:factory", a function or class that makes a judge,
        see `user_code.load`; or what an installed package calls so.
      task, level: what it judges, and how much it is to say. A factory that has a parameter of
        either name gets it.
      settings: what the factory gets as keywords, see `sections.Settings`.

    Raises:
      T2GError: there is no such module or factory, it does not take the settings, it raises, or
        what it returns cannot judge.
    """
    factory = plugins.factory(
        plugins.JUDGES,
        name,
        key="judge.name",
        takes="its settings that returns a judge",
        ours=OURS,
    )
    if name == OWN_JUDGE:
        return require_capability(task, "judge", needed_by="judge.name: task")(level)
    if name == POLICY:
        from t2g_jax.judges.policy import make  # only who has one needs the models

        factory = make
    judge: AnyJudge = factories.make(
        factory,
        settings or {},
        name=name,
        section="judge",
        offers={"task": task, "level": level},
    )
    methods = ("critique", "critique_batch")
    if not any(callable(getattr(judge, method, None)) for method in methods):
        raise T2GError(
            f"judge.name: {name} returned {shown(judge)}; return an object with "
            "critique(example, completion), or critique_batch(examples, completions)"
        )
    return judge
