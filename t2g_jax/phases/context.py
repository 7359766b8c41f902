"""The parts that all phases of a run share, made from its config."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import rich.console
from jax.sharding import Mesh

from t2g_jax.config import Config
from t2g_jax.data.tokenizer import ChatTokenizer, train_tokenizer
from t2g_jax.judges.base import Critique, CritiqueLevel, Judge, JudgeError
from t2g_jax.models import heads
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.phases.workspace import SFT, Workspace, command
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.tasks import make_task
from t2g_jax.tasks.base import Example, Task
from t2g_jax.training.checkpoint import load_params
from t2g_jax.training.metrics import Stopwatch
from t2g_jax.training.sharding import make_mesh, state_shardings


@dataclasses.dataclass(frozen=True)
class Context:
    """A run's config and work directory, and the task, judge, tokenizer, model and mesh.

    `watch` times the stages of a step: "sample", "judge", "score" (log-probabilities, predicted
    span rewards), "update" and "evaluate".
    """

    config: Config
    workspace: Workspace
    task: Task
    judge: Judge
    tokenizer: ChatTokenizer
    model: DecoderConfig
    mesh: Mesh
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)

    @classmethod
    def open(cls, config: Config, workdir: str | os.PathLike[str]) -> Context:
        """Opens a work directory; the first time, trains the tokenizer on the task's own text."""
        workspace = Workspace(workdir, config)
        task = make_task(
            config.task.name,
            preset=config.task.preset,
            settings=config.task.settings,
            seed=config.task.seed,
            train_size=config.task.train_size,
            test_size=config.task.test_size,
            prompt_style=config.task.prompt_style,
        )
        judge = task.judge(CritiqueLevel(config.judge.level))
        if not workspace.tokenizer.exists():
            train_tokenizer(
                _texts(task, judge, min(config.tokenizer.texts, config.task.train_size)),
                config.tokenizer.vocabulary_size,
                workspace.tokenizer,
            )
        tokenizer = ChatTokenizer.load(workspace.tokenizer)
        return cls(
            config=config,
            workspace=workspace,
            task=task,
            judge=judge,
            tokenizer=tokenizer,
            model=decoder_config(config, tokenizer.vocab_size),
            mesh=make_mesh(config.mesh),
        )

    @property
    def sampling(self) -> Sampling:
        settings = dataclasses.asdict(self.config.sampling)
        return Sampling(stop_ids=self.tokenizer.stop_ids, **settings)

    def key(self, purpose: str) -> jax.Array:
        """The PRNG key of a purpose; purposes do not disturb each other."""
        return jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(purpose.encode()))

    def seed(self, purpose: str) -> int:
        """A seed for libraries that do not take JAX keys."""
        return zlib.crc32(f"{self.config.seed}/{purpose}".encode())

    def train_examples(
        self, purpose: str, step: int, count: int, *, among: int | None = None
    ) -> list[Example]:
        """Batch `step` of an endless shuffled stream of training examples, or the first `among`."""
        source = self.task.split("train")
        numbers = grain.MapDataset.range(len(source) if among is None else among)
        order = numbers.shuffle(self.seed(purpose)).repeat()
        return [source[order[i]] for i in range(step * count, (step + 1) * count)]

    def prompt(self, text: str) -> list[int]:
        """The tokens x₀ of a prompt, ready for the assistant's turn."""
        system = [{"role": "system", "content": self.task.system}] if self.task.system else []
        return self.tokenizer.render([*system, {"role": "user", "content": text}])

    def has_room(self, prompt: Sequence[int], tokens: int | None = None) -> bool:
        """Whether a prompt leaves the context room for so many tokens, or for a completion."""
        tokens = self.config.sampling.max_new_tokens if tokens is None else tokens
        return len(prompt) + tokens <= self.config.model.context_length

    def critique(self, example: Example, text: str) -> Critique | JudgeError:
        """The judge's critique, or why there is none; a failure is never taken for praise."""
        with self.watch.stage("judge"):
            try:
                return self.judge.critique(example, text)
            except JudgeError as error:
                return error

    def params(self, phase: str = SFT, *, with_heads: Sequence[str] = ()) -> heads.Params:
        """The parameters that a complete phase left, on the mesh, with the named heads.

        Raises:
          T2GError: the phase is not complete.
        """
        self.workspace.summary(phase)
        shapes = jax.eval_shape(
            lambda key: heads.init_params(self.model, key, heads=tuple(with_heads)),
            jax.random.key(0),
        )
        directory = self.workspace.checkpoints(phase)
        return load_params(directory, self.placed(shapes), made_by=command(phase))[0]

    def placed(self, params: heads.Params) -> heads.Params:
        """Parameters, or their shapes, with the shardings of the mesh."""
        shardings = state_shardings(params, self.mesh)
        if isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct):
            return jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings
            )
        return jax.device_put(params, shardings)


def once(
    phase: str,
    config: Config,
    workdir: str | os.PathLike[str],
    work: Callable[[Context], dict[str, Any]],
) -> dict[str, Any]:
    """A phase's summary: of `work`, done now and recorded, or done before and not again."""
    workspace = Workspace(workdir, config)
    if workspace.is_complete(phase):
        say(f"{phase}: complete, skipped")
        return workspace.summary(phase)
    return workspace.complete(phase, work(Context.open(config, workdir)))


def say(line: str) -> None:
    """A line for whoever watches, on stderr, by the first process only."""
    if jax.process_index() == 0:
        rich.console.Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def decoder_config(config: Config, vocab_size: int) -> DecoderConfig:
    """The decoder that a config describes, for a vocabulary rounded up to a multiple of 64."""
    model = config.model
    return DecoderConfig(
        vocab_size=-(-vocab_size // 64) * 64,
        width=model.width,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_width=model.head_width or model.width // model.heads,
        mlp_width=model.mlp_width,
        rope_theta=model.rope_theta,
        tie_embeddings=model.tie_embeddings,
        dtype=jnp.dtype(model.compute_dtype),
        remat=model.remat,
    )


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
