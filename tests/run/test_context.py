import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny

from t2g_jax.run import context as contexts
from t2g_jax.run.context import Context
from t2g_jax.run.pretrained import decoder_config
from t2g_jax.tasks.base import CRITIQUE_REQUEST, MARK_REQUEST, Critique, JudgeError


def ids(examples):
    return [example.id for example in examples]


def test_training_examples_come_once_an_epoch_in_an_order_of_their_own(tiny_context):
    drawn = [
        id for step in range(6) for id in ids(tiny_context.prompts.train_examples("sft", step, 8))
    ]
    first, second = drawn[:24], drawn[24:]
    everything = sorted(ids(tiny_context.task.split("train")))
    assert sorted(first) == sorted(second) == everything
    assert first != second
    assert first != ids(tiny_context.prompts.train_examples("grpo", 0, 24))
    assert first == ids(tiny_context.prompts.train_examples("sft", 0, 24))


def test_training_examples_among_the_first(tiny_context):
    drawn = ids(tiny_context.prompts.train_examples("sft", 0, 16, among=16))
    assert sorted(drawn) == sorted(ids(tiny_context.task.split("train"))[:16])


def test_seed_is_the_seed_of_all_that_is_random(tiny_context):
    other = tiny.changed(tiny_context, seed=1)
    assert other.keys.seed("sft") != tiny_context.keys.seed("sft")
    assert (
        jax.random.key_data(other.keys.key("a")) != jax.random.key_data(tiny_context.keys.key("a"))
    ).any()
    assert ids(other.prompts.train_examples("sft", 0, 24)) != ids(
        tiny_context.prompts.train_examples("sft", 0, 24)
    )


def test_prompts_hold_the_system_prompt_if_there_is_one(tiny_context, monkeypatch):
    decode = tiny_context.tokenizer.decode
    plain = decode(tiny_context.prompts.render("Hi"), skip_special=False)
    assert plain == "<|user|>Hi<|end|><|assistant|>"
    monkeypatch.setattr(type(tiny_context.task), "system", "Be brief.")
    whole = decode(tiny_context.prompts.render("Hi"), skip_special=False)
    assert whole == f"<|system|>Be brief.<|end|>{plain}"


def test_room_for_a_completion(tiny_context):
    model, sampling = tiny_context.config.model, tiny_context.config.sampling
    longest = model.context_length - sampling.max_new_tokens
    assert tiny_context.prompts.has_room([0] * longest)
    assert not tiny_context.prompts.has_room([0] * (longest + 1))


def test_a_judge_that_fails_is_no_exception(tiny_context, monkeypatch):
    example = tiny_context.task.split("train")[0]
    assert isinstance(tiny_context.judges.critique(example, ""), Critique)

    def fail(*_):
        raise JudgeError("no credit left")

    monkeypatch.setattr(type(tiny_context.judge), "critique", fail)
    failure = tiny_context.judges.critique(example, "")
    assert isinstance(failure, JudgeError)
    assert failure.reason == "no credit left"


@pytest.mark.parametrize("error", [JudgeError("no credit left"), ValueError("no box in it")])
def test_with_a_judge_that_fails_the_tokenizer_learns_from_prompts_and_answers(
    tiny_context, monkeypatch, error
):
    def fail(*_):
        raise error

    monkeypatch.setattr(type(tiny_context.judge), "critique", fail)
    texts = list(contexts._texts(tiny_context.task, tiny_context.judge.level, 4))
    assert len(texts) == 6 * 4


def test_the_tokenizer_is_trained_once_on_the_first_texts(tiny_run, tmp_path, monkeypatch):
    trained = []

    def train(texts, size, directory):
        trained.append((len(list(texts)), size))
        real(texts_of(tiny_run), size, directory)

    def texts_of(run):
        return [
            example.prompt for example in Context.open(run.config, run.workdir).task.split("test")
        ]

    real = contexts.train_tokenizer
    monkeypatch.setattr(contexts, "train_tokenizer", train)
    config = tiny.with_values(tiny_run.config, tokenizer__texts=5, tokenizer__vocabulary_size=300)
    first = Context.open(config, tmp_path)
    assert trained == [(8 * 5, 300)]
    assert Context.open(config, tmp_path).tokenizer.vocab_size == first.tokenizer.vocab_size
    assert len(trained) == 1


def test_the_tokenizer_knows_what_a_run_asks_and_what_is_said_of_broken_answers(tiny_context):
    """Nobody demonstrates a broken answer; a critique of one would be spelled letter by letter."""
    task, judge = tiny_context.task, tiny_context.judge
    texts = set(contexts._texts(task, judge.level, 24))
    without_a_box = judge.critique(task.split("test")[0], "").text
    assert {CRITIQUE_REQUEST, MARK_REQUEST, without_a_box} <= texts


def test_the_vocabulary_is_rounded_up_for_sharding(tiny_run):
    assert decoder_config(tiny_run.config, 257).vocab_size == 320
    assert decoder_config(tiny_run.config, 320).vocab_size == 320


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("layers", 3, {"layers": 3}),
        ("width", 64, {"width": 64, "head_width": 32}),
        ("heads", 4, {"heads": 4, "head_width": 8}),
        ("kv_heads", 2, {"kv_heads": 2}),
        ("head_width", 64, {"head_width": 64}),
        ("mlp_width", 96, {"mlp_width": 96}),
        ("rope_theta", 5e5, {"rope_theta": 5e5}),
        ("tie_embeddings", False, {"tie_embeddings": False}),
        ("compute_dtype", "bfloat16", {"dtype": jnp.bfloat16}),
        ("remat", True, {"remat": True}),
    ],
)
def test_model_fields_reach_the_decoder(tiny_run, field, value, expected):
    before = dataclasses.asdict(decoder_config(tiny_run.config, 300))
    changed = tiny.with_values(tiny_run.config, **{f"model__{field}": value})
    after = dataclasses.asdict(decoder_config(changed, 300))
    assert {name: value for name, value in after.items() if before[name] != value} == expected


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0.5), ("top_k", 3), ("top_p", 0.5), ("max_new_tokens", 7)]
)
def test_sampling_fields_reach_the_sampler(tiny_context, field, value):
    changed = tiny.changed(tiny_context, **{f"sampling__{field}": value}).sampling
    assert getattr(changed, field) == value
    assert dataclasses.replace(changed, **{field: getattr(tiny_context.sampling, field)}) == (
        tiny_context.sampling
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "shortest_path"),
        ("preset", "paper"),
        ("settings", {"max_n": 3}),
        ("seed", 1),
        ("prompt_style", "full"),
    ],
)
def test_task_fields_reach_the_prompts(tiny_run, tmp_path, field, value):
    def prompts(**values):
        values = {"task__settings": {}} | values
        workdir, config = tiny_run.branch(tmp_path / str(len(list(tmp_path.iterdir()))), **values)
        return [e.prompt for e in Context.open(config, workdir).task.split("test")]

    assert prompts() != prompts(**{f"task__{field}": value})


def test_sizes_of_the_splits(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", task__train_size=30, task__test_size=7)
    task = Context.open(config, workdir).task
    assert (len(task.split("train")), len(task.split("test"))) == (30, 7)


def test_the_mesh_is_the_configs(tiny_run, tmp_path):
    sizes = {"data": 2, "fsdp": -1, "tensor": 2}
    values = {f"mesh__{axis}": size for axis, size in sizes.items()}
    workdir, config = tiny_run.branch(tmp_path / "run", **values)
    shape = dict(Context.open(config, workdir).mesh.shape)
    assert shape == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}


@pytest.mark.parametrize("level", ["correctness", "what", "where"])
def test_the_level_is_the_judges(tiny_run, tmp_path, level):
    context = Context.open(tiny.with_values(tiny_run.config, judge__level=level), tmp_path)
    assert context.judge.level.value == level


def test_the_settings_of_the_judge_reach_its_guard(tiny_run, tmp_path):
    values = {"timeout_seconds": 1.5, "max_failures_in_a_row": 7, "workers": 3, "batch_size": 5}
    changed = {f"judge__{name}": value for name, value in values.items()}
    guard = Context.open(tiny.with_values(tiny_run.config, **changed), tmp_path).guard
    assert {name: getattr(guard, name) for name in values} == values


def test_another_judge_is_asked_but_not_for_the_tokenizer(tiny_run, tmp_path):
    config = tiny.with_values(tiny_run.config, judge__name="bad_judges:always_raises")
    context = Context.open(config, tmp_path)
    assert context.judge.calls == 0
    failure = context.judges.critique(context.task.split("train")[0], "0 1")
    assert failure.reason == "raised ConnectionError"
    assert context.tally["judge_failures"] == 1
    ours, theirs = (folder / "tokenizer/tokenizer.json" for folder in (tmp_path, tiny_run.workdir))
    assert ours.read_text() == theirs.read_text()
