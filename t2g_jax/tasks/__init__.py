"""Tasks: prompts, a reward, and where a program can give one, a critique."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t2g_jax import plugins
from t2g_jax.config import DATA, PUZZLES
from t2g_jax.config.base import with_environment
from t2g_jax.installation import pip_install
from t2g_jax.tasks.base import Example, Floor, Score, Task, TaskError

if TYPE_CHECKING:
    from t2g_jax.tasks.puzzles.reasoning import ReasoningTask

__all__ = ["PUZZLES", "Example", "Floor", "Score", "Task", "TaskError", "find_task", "make_task"]


def find_task(name: str, settings: Mapping[str, Any], **puzzle: Any) -> Task:
    """The task of a name and its settings.

    Args:
      name: a puzzle, see `make_task`; "data", rows of one's own; or "package.module:function",
        which makes a task of the settings, see `custom`, or what an installed package calls so.
      puzzle: what else `make_task` takes; for puzzles alone.

    Raises:
      T2GError: an unknown name, or settings that cannot be used.
    """
    factory = plugins.factory(
        plugins.TASKS,
        name,
        key="task.name",
        takes="its settings that returns a task",
        ours=(*PUZZLES, DATA),
    )
    if factory is not None:
        from t2g_jax.tasks.custom import make_custom_task

        return make_custom_task(name, settings, factory)
    if name == DATA:
        from t2g_jax.tasks.data import make_data_task

        return make_data_task(with_environment(settings, "task.settings"))
    return make_task(name, settings=settings, **puzzle)


def make_task(
    name: str,
    *,
    preset: str = "paper",
    settings: Mapping[str, float] | None = None,
    seed: int = 0,
    train_size: int = 19_800,
    test_size: int = 200,
    prompt_style: str = "full",
    mistakes: Mapping[str, float] | None = None,
) -> "ReasoningTask":
    """One of the puzzles of RLTF (arXiv 2602.02482), made by the reasoning-gym library.

    With the defaults, the test split holds the very puzzles that the paper was evaluated on.

    Args:
      name: "binary_matrix", "knights_knaves" or "shortest_path".
      preset: difficulty; "paper", or "tiny" for a small model.
      settings: settings of the reasoning-gym dataset that replace the preset's.
      seed: seed of the puzzles.
      train_size, test_size: examples in each split. Neither changes what the other split holds,
        save that training puzzles never equal a test puzzle.
      prompt_style: "full" for reasoning-gym's question, "short" for a few words.
      mistakes: how often, relative to each other, `demonstrate` makes each kind of mistake.

    Raises:
      TaskError: an unknown name, or a value that cannot be used.
    """
    if name not in PUZZLES:
        raise TaskError(f"task: unknown name {name!r}; known: {', '.join(PUZZLES)}")
    return _puzzle_class(name)(
        preset=preset,
        settings=settings,
        seed=seed,
        train_size=train_size,
        test_size=test_size,
        prompt_style=prompt_style,
        mistakes=mistakes,
    )


def _puzzle_class(name: str) -> type["ReasoningTask"]:
    # reasoning-gym need not be there: only those who use it ask for it.
    try:
        match name:
            case "binary_matrix":
                from t2g_jax.tasks.puzzles.binary_matrix import BinaryMatrix

                return BinaryMatrix
            case "knights_knaves":
                from t2g_jax.tasks.puzzles.knights_knaves import KnightsKnaves

                return KnightsKnaves
            case _:
                from t2g_jax.tasks.puzzles.shortest_path import ShortestPath

                return ShortestPath
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "reasoning_gym":
            raise
        raise TaskError(
            f"task: {name} needs the reasoning-gym package: {pip_install('tasks')}"
        ) from error
