"""The parts that all phases of a run share, made from its config."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import random
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from t2g_jax.config import Config
from t2g_jax.data import trial
from t2g_jax.data.tokenizer import ChatTokenizer, train_tokenizer
from t2g_jax.errors import T2GError, reason
from t2g_jax.judges.batches import AnyJudge
from t2g_jax.judges.cache import CritiqueCache, identity_of
from t2g_jax.judges.custom import OWN_JUDGE, make_judge
from t2g_jax.judges.guard import Guard
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.parallel.sharding import make_mesh
from t2g_jax.printing import one_line, tell
from t2g_jax.run import capacity, pretrained, provenance
from t2g_jax.run.claim import claimed, is_claimed
from t2g_jax.run.keys import Keys
from t2g_jax.run.needs import ignored, require_needed
from t2g_jax.run.panel import JudgePanel
from t2g_jax.run.prompts import Prompts
from t2g_jax.run.rows import QUARANTINE, require_rows
from t2g_jax.run.scorer import Scorer
from t2g_jax.run.weights import Weights
from t2g_jax.run.workspace import Workspace
from t2g_jax.runtime import durable, hosts, preemption
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.tasks import find_task
from t2g_jax.tasks.base import (
    CRITIQUE_REQUEST,
    MARK_REQUEST,
    Critique,
    CritiqueLevel,
    Example,
    Task,
    capability,
    prompt_text,
    require_capability,
)
from t2g_jax.training import trackers
from t2g_jax.training.metrics import Stopwatch

READING = ("sampling", "judge", "seed", "mesh", "model.attention")
"""Sections and fields that need not be as in training when nothing is trained: how to sample and to
judge, and on which devices."""


def _nothing_amiss() -> collections.Counter[str]:
    return collections.Counter(
        judge_failures=0, prompts_too_long=0, rows_too_long=0, broken_completions=0
    )


@dataclasses.dataclass(frozen=True)
class Context:
    """A run's config and work directory, and the task, judge, tokenizer, model and mesh.

    `judge`: None where the task has none of its own, and no other is named.
    `read_only`: whether nothing is trained, see `open`.
    `watch` times the stages of a step: "sample", "judge", "score" (log-probabilities, predicted
    span rewards), "update" and "evaluate". `tally` counts what could not be used: critiques that
    were not to be had, prompts that leave no room for a completion, rows longer than the context,
    completions that end where the model gave no distribution.
    """

    config: Config
    workspace: Workspace
    task: Task
    judge: AnyJudge | None
    tokenizer: ChatTokenizer
    model: DecoderConfig
    mesh: Mesh
    read_only: bool = False
    guard: Guard = dataclasses.field(default_factory=Guard)
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    tally: collections.Counter[str] = dataclasses.field(default_factory=_nothing_amiss)

    @classmethod
    def open(
        cls, config: Config, workdir: str | os.PathLike[str], *, read_only: bool = False
    ) -> Context:
        """Opens a work directory.

        The first time, it gets the tokenizer of the pretrained model; without one, a tokenizer is
        trained on the task's own text. Before that, all that is to be read from elsewhere has been
        checked, and all else that can fail has been made.

        Args:
          read_only: nothing is made, and how it samples and judges need not be as in training.

        Raises:
          T2GError: it is the folder of another run, or of none; or something cannot be made as the
            config says, or is not what complete phases were made with; see `pretrained.check`.
        """
        workspace = Workspace(workdir, config, free=READING if read_only else ())
        if read_only:
            pretrained.pin(config, workspace.root)
            capacity.check(config, pretrained.described(config), learns=False)
            mesh, task, judge = parts(config)
        else:
            mesh, task, judge = checked_parts(config, workspace.root)
            new = not hosts.broadcast_from_primary(workspace.tokenizer.exists)
            pretrained_tokenizer = (
                pretrained.tokenizer(config.model.pretrained, config.tokenizer.template_options)
                if new and config.model.pretrained is not None
                else None
            )
            if new:
                for note in [*notes_of(task, workspace.root), *ignored(config, task)]:
                    say(note)
            workspace.begin()
            pretrained.pin(config, workspace.root, record=True)
            hosts.broadcast_from_primary(lambda: require_rows(workspace.root, task, record=True))
            hosts.broadcast_from_primary(
                lambda: _make_tokenizer(workspace, task, pretrained_tokenizer)
            )
        hosts.broadcast_from_primary(lambda: require_rows(workspace.root, task))
        provenance.require_loadable(workspace)  # what is not ours is never loaded
        return cls.assembled(workspace, mesh, task, judge, read_only=read_only)

    @classmethod
    def assembled(
        cls,
        workspace: Workspace,
        mesh: Mesh,
        task: Task,
        judge: AnyJudge | None,
        *,
        read_only: bool = False,
    ) -> Context:
        """The context of a work directory whose tokenizer may be loaded, see
        `provenance.require_loadable`.

        Raises:
          T2GError: the tokenizer is damaged, or cannot say what the config needs.
        """
        config = workspace.config
        try:
            options = config.tokenizer.template_options
            tokenizer = ChatTokenizer.load(workspace.tokenizer, template_options=options)
        except Exception as error:  # of many kinds, from several libraries
            raise T2GError(
                f"the tokenizer in {workspace.tokenizer} cannot be read ({reason(error)[:200]}); "
                "put it back as it was, or begin anew in another --workdir: policies cannot be "
                "used without the tokenizer that they were trained with"
            ) from error
        pretrained.check_chat(config, tokenizer)  # sooner here than after an hour
        return cls(
            config=config,
            workspace=workspace,
            task=task,
            judge=judge,
            tokenizer=tokenizer,
            model=pretrained.decoder_config(config, tokenizer.vocab_size),
            mesh=mesh,
            read_only=read_only,
            guard=Guard(
                timeout_seconds=config.judge.timeout_seconds,
                max_failures_in_a_row=config.judge.max_failures_in_a_row,
                workers=config.judge.workers,
                batch_size=config.judge.batch_size,
                cache=_cache(workspace, judge),
            ),
        )

    @property
    def sampling(self) -> Sampling:
        settings = dataclasses.asdict(self.config.sampling)
        return Sampling(stop_ids=self.tokenizer.stop_ids, **settings)

    @functools.cached_property
    def keys(self) -> Keys:
        """Random keys by purpose."""
        return Keys(self.config.seed)

    @functools.cached_property
    def prompts(self) -> Prompts:
        """Examples in tokens, and the room for completions."""
        return Prompts(
            self.task,
            self.tokenizer,
            self.keys,
            context_length=self.config.model.context_length,
            max_new_tokens=self.config.sampling.max_new_tokens,
            can_grow=not self.read_only,
            tally=self.tally,
        )

    @functools.cached_property
    def weights(self) -> Weights:
        """Parameters that phases begin with and leave."""
        return Weights(self.config, self.workspace, self.model, self.mesh, self.keys)

    @functools.cached_property
    def judges(self) -> JudgePanel:
        """The run's judge."""
        return JudgePanel(self.judge, self.guard, self.watch, self.tally)

    @functools.cached_property
    def own_judges(self) -> JudgePanel:
        """The task's own program, where that is not the run's judge; it is not tallied."""
        if self.config.judge.name == OWN_JUDGE:
            return self.judges
        judge = require_capability(self.task, "judge", needed_by="sft.critiques: task")
        return self.judges.replaced_by(judge(CritiqueLevel(self.config.judge.level)))

    @functools.cached_property
    def scorer(self) -> Scorer:
        """What completions earn."""
        return Scorer(self.task, self.judges)


def parts(config: Config) -> tuple[Mesh, Task, AnyJudge | None]:
    """What a config names that need not be there, made without a work directory.

    Raises:
      T2GError: there are not enough devices, no such task or judge, or the task lacks what the
        config needs.
    """
    task = find_task(
        config.task.name,
        config.task.settings,
        preset=config.task.preset,
        seed=config.task.seed,
        train_size=config.task.train_size,
        test_size=config.task.test_size,
        prompt_style=config.task.prompt_style,
    )
    require_needed(config, task)
    return make_mesh(config.mesh), task, judge_of(config, task)


def judge_of(config: Config, task: Task) -> AnyJudge | None:
    """The judge that a config names; None: the task's own, and it has none."""
    if config.judge.name == OWN_JUDGE and capability(task, "judge") is None:
        return None
    level = CritiqueLevel(config.judge.level)
    return make_judge(config.judge.name, task, level, config.judge.settings)


def notes_of(task: Task, workdir: Path) -> list[str]:
    """What a task has to say of its examples before a run begins."""
    notes = getattr(task, "notes", None)
    if not callable(notes):
        return []
    bad = getattr(task, "quarantine", ())
    return [*notes(), *([f"task: {workdir / QUARANTINE} has them all"] if bad else [])]


def checked_parts(config: Config, root: Path) -> tuple[Mesh, Task, AnyJudge | None]:
    """`parts`, after all that can be known of a config before anything of it is trained.

    Args:
      root: the work directory, which remembers what pretrained models are called.

    Raises:
      T2GError: as `parts`; or see `pretrained.check`, or a package is missing.
    """
    pretrained.pin(config, root)
    pretrained.check(config)
    made = parts(config)
    trackers.require_packages(config)
    return made


def once(
    phase: str,
    config: Config,
    workdir: str | os.PathLike[str],
    work: Callable[[Context], dict[str, Any]],
    *,
    needs: Sequence[str] = (),
) -> dict[str, Any]:
    """A phase's summary: of `work`, done now and recorded, or done before and not again.

    Args:
      needs: phases that must be complete, and fit what is there, before it begins.

    Raises:
      T2GError: one of them is not, or does not; then nothing was made.
    """
    workspace = Workspace(workdir, config)
    for name in needs:
        if not workspace.is_complete(phase):
            workspace.summary(name)
    with claimed(workdir):
        preemption.stop_if_asked()
        if workspace.is_complete(phase):
            say(f"{phase}: complete, skipped")
            summary = workspace.summary(phase)
            if "made" in summary:
                for problem in hosts.broadcast_from_primary(
                    lambda: provenance.misfits(workspace, phase)
                ):
                    say(
                        f"{phase}: was made from {problem}; delete {workspace.phase(phase)} to "
                        "have it done again"
                    )
            return summary
        hosts.broadcast_from_primary(lambda: provenance.require_fit(workspace, needs))
        summary = work(Context.open(config, workdir))
        return workspace.complete(phase, summary | {"environment": provenance.environment()})


def say(line: str) -> None:
    """A line for whoever watches, on stderr, by the first process only."""
    if hosts.is_primary():
        tell(one_line(line))


def _cache(workspace: Workspace, judge: AnyJudge | None) -> CritiqueCache | None:
    """The cache of a judge that is paid or waited for; the task's own program answers at once."""
    config = workspace.config.judge
    if config.name == OWN_JUDGE:
        return None
    return CritiqueCache(
        workspace.critiques,
        identity_of(judge, config.name, config.level, config.settings),
        writes=hosts.is_primary() and is_claimed(workspace.root),
    )


def _make_tokenizer(workspace: Workspace, task: Task, source: ChatTokenizer | None) -> None:
    """Unless there is one; never another one than what is complete was made with."""
    if workspace.tokenizer.exists():
        return
    config = workspace.config
    building = workspace.tokenizer.with_name(f"tokenizer.{secrets.token_hex(4)}.partial")
    try:
        if source is not None:
            source.save(building)
        else:
            texts = _texts(task, CritiqueLevel(config.judge.level), config.tokenizer.texts)
            train_tokenizer(texts, config.tokenizer.vocabulary_size, building)
        provenance.require_tokenizer(workspace, building)
        try:
            durable.appear(building, workspace.tokenizer)
        except OSError as error:  # another process was first
            if not workspace.tokenizer.exists():
                raise T2GError(f"{workspace.tokenizer} could not be made") from error
        else:
            trial.know(workspace.tokenizer, config.tokenizer.template_options)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _texts(task: Task, level: CritiqueLevel, count: int) -> Iterator[str]:
    """What the tokenizer is trained on: the requests of a run, prompts and, where there are any,
    careless, broken and right answers, and critiques of the task's own program: another judge is
    not asked for this."""
    rng = random.Random(0)
    train = task.split("train")
    demonstrate, solve = capability(task, "demonstrate"), capability(task, "solve")
    judge = capability(task, "judge")
    attempts: list[tuple[Example, str]] = []
    for index in range(min(count, len(train))):
        example = train[index]
        yield from (prompt_text(example.prompt), CRITIQUE_REQUEST, MARK_REQUEST)
        if demonstrate is not None and (attempt := demonstrate(example, rng)) is not None:
            # A policy breaks the form of an answer in ways that nobody demonstrates, and is told.
            start, end = sorted(rng.randint(0, len(attempt)) for _ in range(2))
            broken = attempt[:start] + attempt[end:]
            yield from (attempt, broken)
            attempts += [(example, attempt), (example, broken)]
        if solve is not None and (answer := solve(example)) is not None:
            yield answer
    if judge is not None and attempts:
        # One that fails is found out where critiques are learned from.
        guard = Guard(max_failures_in_a_row=len(attempts) + 1)
        examples, texts = zip(*attempts, strict=True)
        for outcome in guard.critiques(judge(level), examples, texts):
            if isinstance(outcome, Critique):
                yield outcome.text
