"""The parts that all phases of a run share, made from its config."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import random
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from t2g_jax.config import Config
from t2g_jax.data import trial
from t2g_jax.data.tokenizer import ChatTokenizer, train_tokenizer
from t2g_jax.errors import T2GError, reason
from t2g_jax.judges.cache import CritiqueCache, identity_of
from t2g_jax.judges.counts import failed_column
from t2g_jax.judges.custom import OWN_JUDGE, make_judge
from t2g_jax.judges.guard import Guard
from t2g_jax.models import heads, lora
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.parallel.sharding import make_mesh, state_shardings
from t2g_jax.printing import one_line, tell
from t2g_jax.run import capacity, pretrained, provenance
from t2g_jax.run.claim import claimed, is_claimed
from t2g_jax.run.workspace import REWARD_MODEL, SFT, Workspace, command
from t2g_jax.runtime import durable, hosts, preemption
from t2g_jax.runtime.watchdog import beat
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.tasks import make_task
from t2g_jax.tasks.base import Critique, CritiqueLevel, Example, Judge, JudgeError, Task
from t2g_jax.training import trackers
from t2g_jax.training.checkpoint import Checkpoints
from t2g_jax.training.metrics import Stopwatch

READING = ("sampling", "judge", "seed", "mesh", "model.attention")
"""Sections and fields that need not be as in training when nothing is trained: how to sample and to
judge, and on which devices."""
_TRIES = 1000
"""Training examples that are looked at for one whose prompt is not too long."""


def _nothing_amiss() -> collections.Counter[str]:
    return collections.Counter(
        judge_failures=0, prompts_too_long=0, rows_too_long=0, broken_completions=0
    )


@dataclasses.dataclass(frozen=True)
class Context:
    """A run's config and work directory, and the task, judge, tokenizer, model and mesh.

    `read_only`: whether nothing is trained, see `open`.
    `watch` times the stages of a step: "sample", "judge", "score" (log-probabilities, predicted
    span rewards), "update" and "evaluate". `tally` counts what could not be used: critiques that
    were not to be had, prompts that leave no room for a completion, rows longer than the context,
    completions that end where the model gave no distribution.
    """

    config: Config
    workspace: Workspace
    task: Task
    judge: Judge
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
        pretrained.pin(config, workspace.root)
        if read_only:
            capacity.check(config, pretrained.described(config), learns=False)
        else:
            pretrained.check(config)
        mesh, task, judge = parts(config)
        if not read_only:
            trackers.require_packages(config)
            new = not hosts.broadcast_from_primary(workspace.tokenizer.exists)
            pretrained_tokenizer = (
                pretrained.tokenizer(config.model.pretrained, config.tokenizer.template_options)
                if new and config.model.pretrained is not None
                else None
            )
            workspace.begin()
            pretrained.pin(config, workspace.root, record=True)
            hosts.broadcast_from_primary(
                lambda: _make_tokenizer(workspace, task, pretrained_tokenizer)
            )
        provenance.require_loadable(workspace)  # what is not ours is never loaded
        return cls.assembled(workspace, mesh, task, judge, read_only=read_only)

    @classmethod
    def assembled(
        cls, workspace: Workspace, mesh: Mesh, task: Task, judge: Judge, *, read_only: bool = False
    ) -> Context:
        """Of a work directory whose tokenizer may be loaded, see `provenance.require_loadable`.

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
                cache=_cache(workspace, judge),
            ),
        )

    @property
    def sampling(self) -> Sampling:
        settings = dataclasses.asdict(self.config.sampling)
        return Sampling(stop_ids=self.tokenizer.stop_ids, **settings)

    def key(self, purpose: str) -> jax.Array:
        """The PRNG key of a purpose; purposes do not disturb each other."""
        return jax.random.fold_in(key_of(self.config.seed), zlib.crc32(purpose.encode()))

    def seed(self, purpose: str) -> int:
        """A seed for libraries that do not take JAX keys."""
        return zlib.crc32(f"{self.config.seed}/{purpose}".encode())

    def train_examples(
        self, purpose: str, step: int, count: int, *, among: int | None = None
    ) -> list[Example]:
        """Batch `step` of an endless shuffled stream of training examples, or the first `among`.

        One whose prompt leaves no room for a completion is replaced by what has its place in a
        later epoch, and counted in `tally`.

        Raises:
          T2GError: no prompt leaves room for a completion.
        """
        import grain  # takes a while, and only training needs it

        source = self.task.split("train")
        size = len(source) if among is None else among
        order = grain.MapDataset.range(size).shuffle(self.seed(purpose)).repeat()

        def fitting(i: int) -> Example:
            shortest = None
            for epoch in range(_TRIES):
                example = source[order[i + epoch * size]]
                prompt = self.prompt(example.prompt)
                if self.has_room(prompt):
                    return example
                self.tally["prompts_too_long"] += 1
                shortest = min(len(prompt), shortest or len(prompt))
            assert shortest is not None
            raise self.no_room("even the shortest training prompt", shortest)

        return [fitting(i) for i in range(step * count, (step + 1) * count)]

    def test_examples(self) -> list[Example]:
        """The test examples whose prompts leave room for a completion; `tally` counts the others.

        Raises:
          T2GError: none of them does.
        """
        tests = list(self.task.split("test"))
        prompts = [self.prompt(example.prompt) for example in tests]
        fitting = [e for e, prompt in zip(tests, prompts, strict=True) if self.has_room(prompt)]
        if not fitting:
            raise self.no_room("even the shortest test prompt", min(map(len, prompts)))
        self.tally["prompts_too_long"] += len(tests) - len(fitting)
        return fitting

    def prompt(self, text: str) -> list[int]:
        """The tokens x₀ of a prompt, ready for the assistant's turn."""
        system = [{"role": "system", "content": self.task.system}] if self.task.system else []
        return self.tokenizer.render([*system, {"role": "user", "content": text}])

    def has_room(self, prompt: Sized, tokens: int | None = None) -> bool:
        """Whether a prompt leaves the context room for so many tokens, or for a completion."""
        tokens = self.config.sampling.max_new_tokens if tokens is None else tokens
        return len(prompt) + tokens <= self.config.model.context_length

    def no_room(self, what: str, tokens: int) -> T2GError:
        """The error about a prompt for which `has_room` is false."""
        whole, new = self.config.model.context_length, self.config.sampling.max_new_tokens
        ways = ["shorten it"]
        if tokens < whole:
            ways.append(f"lower sampling.max_new_tokens to {whole - tokens} or less")
        if not self.read_only:  # else it is what the policy was trained with
            ways.append("raise model.context_length")
        return T2GError(
            f"{what} has {tokens} tokens, but model.context_length ({whole}) less "
            f"sampling.max_new_tokens ({new}) leaves {whole - new}; {', or '.join(ways)}"
        )

    def critique(self, example: Example, text: str) -> Critique | JudgeError:
        """The judge's critique, or why there is none; a failure is never taken for praise."""
        (outcome,) = self.critiques([example], [text])
        return outcome

    def critiques(
        self, examples: Sequence[Example], texts: Sequence[str]
    ) -> Iterator[Critique | JudgeError]:
        """Yields what `critique` returns for each text, in order; `judge.workers` at a time.

        Raises:
          T2GError: the judge is down (`judge.max_failures_in_a_row`).
        """
        outcomes = self._outcomes(examples, texts)
        while True:
            with self.watch.stage("judge"):
                outcome = next(outcomes, None)
            if outcome is None:
                return
            beat()
            self.tally["judge_failures"] += isinstance(outcome, JudgeError)
            if isinstance(outcome, JudgeError):
                self.tally[failed_column(self.tally, outcome.reason)] += 1
            yield outcome

    def with_own_judge(self) -> Context:
        """The same, asking the task's own program, not the run's judge; that is not tallied."""
        if self.config.judge.name == OWN_JUDGE:
            return self
        guard = Guard(
            timeout_seconds=self.guard.timeout_seconds,
            max_failures_in_a_row=self.guard.max_failures_in_a_row,
        )
        own = self.task.judge(CritiqueLevel(self.config.judge.level))
        return dataclasses.replace(self, judge=own, guard=guard, tally=collections.Counter())

    def _outcomes(
        self, examples: Sequence[Example], texts: Sequence[str]
    ) -> Iterator[Critique | JudgeError]:
        """What the judge said. One of several processes asks, and tells the others every second."""
        asked = self.guard.critiques(self.judge, examples, texts, self.tally)
        if not hosts.several():
            yield from asked
            return

        def next_ones() -> list[dict[str, Any]]:
            told: list[dict[str, Any]] = []
            end = time.monotonic() + 1
            for outcome in asked:
                if isinstance(outcome, Critique):
                    told.append({"critique": outcome.to_dict()})
                else:
                    told.append({"reason": outcome.reason, "details": outcome.details})
                if time.monotonic() > end:
                    break
            return told

        known = 0
        while known < len(texts):
            for outcome in hosts.broadcast_from_primary(next_ones):
                known += 1
                if "critique" in outcome:
                    yield Critique.from_dict(outcome["critique"])
                else:
                    yield JudgeError(outcome["reason"], outcome["details"])
            preemption.stop_if_asked()

    def params(
        self, phase: str = SFT, *, with_heads: Sequence[str] = (), step: int | None = None
    ) -> heads.Params:
        """The parameters that a complete phase left, on the mesh, with the named heads.

        They are its last, or those of a `step` whose checkpoint was kept (see `best_step`). With
        LoRA they are the warm start, one copy for all phases, and what the phase trained.

        Raises:
          T2GError: the phase is not complete, was trained with other adapters, or what is there is
            not what it left, or not what it was trained on.
        """
        if self.config.lora.rank == 0:
            return self._saved(phase, with_heads, step)
        if phase == SFT and not with_heads:
            return self._warm_start
        return lora.join(self._saved(phase, with_heads, step), self._warm_start)

    def class_weights(self) -> tuple[float, float, float]:
        """What the classes weighed when the reward model was trained, as its phase recorded it.

        Raises:
          T2GError: it is not complete.
        """
        trained_with = self.workspace.summary(REWARD_MODEL).get("class_weights")
        poor, neutral, good = trained_with or self.config.reward_model.class_weights
        return poor, neutral, good

    def best_step(self, phase: str) -> int | None:
        """The step of a method that is to answer, if it is not the last: `evaluate.checkpoint`.

        Raises:
          T2GError: the method kept no best checkpoint.
        """
        if phase == SFT or self.config.evaluate.checkpoint == "last":
            return None
        self.workspace.summary(phase)
        directory, by = self.workspace.checkpoints(phase), best_by(self.config)
        with Checkpoints(directory, read_only=True, keep_best=by) as checkpoints:
            best = checkpoints.best_step
        if best is None:
            raise T2GError(
                f"no checkpoint in {directory} has the metric "
                f"{self.config.checkpoint.keep_best!r} (checkpoint.keep_best) to choose the best "
                "by; set evaluate.checkpoint to last"
            )
        return best

    def initial_params(self) -> heads.Params:
        """What the warm start begins with, on the mesh: the pretrained model, or random weights."""
        return pretrained.params(self.config, self.model, self.mesh, self.key("init"))

    @functools.cached_property
    def _warm_start(self) -> heads.Params:
        return self._saved(SFT, ())

    def _saved(
        self, phase: str, with_heads: Sequence[str], step: int | None = None
    ) -> heads.Params:
        """What a complete phase trained."""
        summary = self.workspace.summary(phase)
        source = self.config.model.pretrained
        if phase == SFT and self.config.sft.steps == 0:
            if source == self.workspace.config.model.pretrained:
                made_by, key = SFT, "model.pretrained"
            else:  # the reward model reads with a model of its own
                made_by, key = REWARD_MODEL, "reward_model.pretrained"
            if self.workspace.is_complete(made_by):
                hosts.broadcast_from_primary(
                    lambda: provenance.require_base(self.workspace, made_by, key, source)
                )
            return self.initial_params()
        rank = 0 if phase == SFT else self.config.lora.rank
        found = summary.get("lora_rank", 0)
        if found != rank:
            raise T2GError(
                f"{self.workspace.phase(phase)} was trained with lora.rank {found}, the config has "
                f"{rank}: set lora.rank to {found}, or train it again in another --workdir"
            )

        if rank:  # adapters mean nothing on other weights
            hosts.broadcast_from_primary(lambda: provenance.require_fit(self.workspace, [phase]))

        def shapes(key: jax.Array) -> heads.Params:
            params = heads.init_params(self.model, key, heads=tuple(with_heads))
            return lora.split(lora.add_adapters(params, key, rank=rank) if rank else params)[0]

        abstract = self.placed(jax.eval_shape(shapes, jax.random.key(0)))
        directory = self.workspace.checkpoints(phase)
        try:
            with Checkpoints(
                directory, read_only=True, async_=False, made_by=command(phase)
            ) as checkpoints:
                last = hosts.broadcast_from_primary(
                    lambda: provenance.last_step(self.workspace, phase)
                )
                left = hosts.broadcast_from_primary(
                    lambda: provenance.artifact(self.workspace, phase)
                )
                if checkpoints.fingerprint(last) != left:
                    raise T2GError(f"{directory} does not hold what {phase} was complete with")
                return checkpoints.restore_params(abstract, last if step is None else step)[0]
        except T2GError as error:
            folder = self.workspace.phase(phase)
            raise T2GError(
                f"{error}. {phase} counts as complete; to have it done again, delete {folder} and "
                f"run `{command(phase)} CONFIG`. To go on from an earlier checkpoint, delete "
                f"{folder / 'complete.json'}, too, and run the same"
            ) from error

    def frozen(self, params: heads.Params) -> heads.Params:
        """Parameters that learn no more, in the type that they are computed in: half of float32.

        With LoRA as they are, since they share arrays with those that learn.
        """
        if self.config.lora.rank:
            return params
        policy = {name: tree for name, tree in params.items() if name in ("decoder", "lm_head")}
        return params | heads.as_computed(policy, self.model)

    def with_adapters(self, params: heads.Params, phase: str) -> heads.Params:
        """The parameters that a phase starts from, with adapters if there is LoRA."""
        settings = self.config.lora
        if settings.rank == 0:
            return params
        key = self.key(f"{phase}/lora")
        params = self.placed(lora.add_adapters(params, key, rank=settings.rank))
        if settings.pretrained is None:
            return params
        return pretrained.adapters(self.config, self.model, params)

    def placed(self, params: heads.Params) -> heads.Params:
        """Parameters, or their shapes, with the shardings of the mesh."""
        shardings = state_shardings(params, self.mesh)
        if isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct):
            return jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings
            )
        return hosts.place(params, shardings)


def parts(config: Config) -> tuple[Mesh, Task, Judge]:
    """What a config names that need not be there, made without a work directory.

    Raises:
      T2GError: there are not enough devices, or no such judge.
    """
    task = make_task(
        config.task.name,
        preset=config.task.preset,
        settings=config.task.settings,
        seed=config.task.seed,
        train_size=config.task.train_size,
        test_size=config.task.test_size,
        prompt_style=config.task.prompt_style,
    )
    judge = make_judge(config.judge.name, task, CritiqueLevel(config.judge.level))
    return make_mesh(config.mesh), task, judge


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


def key_of(seed: int) -> jax.Array:
    """The PRNG key of a seed of any size: `jax.random.key` takes the last 32 bits alone."""
    seed, low = divmod(seed, 2**32)
    key = jax.random.key(low)
    while seed:
        seed, low = divmod(seed, 2**32)
        key = jax.random.fold_in(key, low)
    return key


def _cache(workspace: Workspace, judge: Judge) -> CritiqueCache | None:
    """Of a judge that is paid or waited for; the task's own program answers at once."""
    config = workspace.config.judge
    if config.name == OWN_JUDGE:
        return None
    return CritiqueCache(
        workspace.critiques,
        identity_of(judge, config.name, config.level),
        writes=hosts.is_primary() and is_claimed(workspace.root),
    )


def best_by(config: Config) -> tuple[str, Literal["max", "min"]] | None:
    """`Checkpoints.keep_best` of a config, for the phases of methods."""
    name, best_is = config.checkpoint.keep_best, config.checkpoint.best_is
    return None if name is None else (name, best_is)


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
            count = min(config.tokenizer.texts, config.task.train_size)
            # Of the puzzle's own judge: one that must be paid or waited for is not asked for this.
            judge = task.judge(CritiqueLevel(config.judge.level))
            texts = _texts(task, judge, count)
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


def _texts(task: Task, judge: Judge, count: int) -> Iterator[str]:
    """What the tokenizer is trained on: prompts, careless and right answers, and critiques."""
    rng = random.Random(0)
    train = task.split("train")
    for index in range(count):
        example = train[index]
        attempt = task.demonstrate(example, rng)
        yield example.prompt
        yield attempt
        with contextlib.suppress(JudgeError):
            yield judge.critique(example, attempt).text
        yield task.solve(example)
