import collections
import gc
import shutil

import jax
import pytest
import tiny

from t2g_jax.methods.base import MethodExperience, Trajectory
from t2g_jax.phases import policy
from t2g_jax.rollouts.episodes import Episode
from t2g_jax.run.context import Context
from t2g_jax.run.samples import read_samples
from t2g_jax.run.workspace import accept_changes
from t2g_jax.training.state import TrainState


class Fake:
    """A method that learns nothing from an attempt a step."""

    plan = reward_model = None

    def __init__(self, name, context):
        self.name, self.context = name, context
        self.config, self.params = context.config.grpo, None

    def collect(self, state, step):
        played = Episode((tiny.turn(self.context, f"{step}", reward=1.0),))
        return MethodExperience([], {"reward": 1.0}, trajectories=[Trajectory(played, [step])])


@pytest.fixture
def collect(tiny_context, tmp_path, monkeypatch):
    """collect(every): what is collected at six steps of a policy that is tested so often."""

    def collect(every):
        context = tiny.changed(tiny_context, grpo__eval_every=every)
        found = []

        def training(context, phase, params, collect, plan, **_):
            found.extend(collect(TrainState(0, {}, None), step) for step in range(6))
            return params, {}

        monkeypatch.setattr(policy, "make_method", Fake)
        monkeypatch.setattr(policy, "run_training", training)

        def tested(context, params, step):
            return {"test_accuracy": step / 10}

        monkeypatch.setattr(policy, "test_scores", tested)
        monkeypatch.setattr(type(context.workspace), "phase", lambda *_: tmp_path)
        policy.train(context, "grpo")
        return found

    return collect


@pytest.mark.parametrize(
    ("every", "tested"), [(0, {}), (1, {i: i / 10 for i in range(6)}), (4, {0: 0, 4: 0.4})]
)
def test_eval_every(collect, every, tested):
    metrics = [collected.metrics for collected in collect(every)]
    found = {i: line["test_accuracy"] for i, line in enumerate(metrics) if "test_accuracy" in line}
    assert found == tested
    assert all(line["reward"] == 1 for line in metrics)


# Of the reference, which grpo has none of, and of the reward model.
@pytest.mark.parametrize(("method", "frozen"), [("grpo", 0), ("text2grad", 2)])
def test_what_learns_is_in_memory_once(tiny_run, tmp_path, monkeypatch, method, frozen):
    """Embeddings in float32: the policy's and two moments; in bfloat16: of what does not learn."""
    shutil.copytree(tiny_run.workdir, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / method)
    config = tiny.with_values(tiny_run.config, model__compute_dtype="bfloat16")
    accept_changes(tmp_path, config)
    context = Context.open(config, tmp_path)
    shape = (context.model.vocab_size, context.model.width)

    def there():
        gc.collect()
        return collections.Counter(str(x.dtype) for x in jax.live_arrays() if x.shape == shape)

    before, found, made = there(), [], policy.make_method

    def watched(name, context):
        method = made(name, context)
        collect = method.collect

        def seen(state, step):
            found.append(there() - before)
            return collect(state, step)

        method.collect = seen
        return method

    monkeypatch.setattr(policy, "make_method", watched)
    policy.train(context, method)
    expected = collections.Counter(float32=3, bfloat16=frozen)
    assert found[0] == +expected  # later a checkpoint may be on its way


def test_samples_are_kept_by_step(collect, tmp_path):
    """Of the first, the middle and the last of three."""
    collect(0)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == [f"0000000{step}.json" for step in (0, 1, 2)]
    for step, sample in enumerate(read_samples(tmp_path)):
        assert (sample.method, sample.step, sample.reward) == ("grpo", step + 1, 1.0)
        assert sample.tokens[0].text == f"{step}"
        assert {cell.advantage for cell in sample.tokens} == {step}


def test_testing_is_not_counted_as_sampling(tiny_context):
    context = tiny.changed(tiny_context)
    accuracies = {
        policy.test_scores(context, context.weights.load(), step)["test_accuracy"]
        for step in (0, 0)
    }
    assert len(accuracies) == 1
    assert context.watch.lap() == {}
