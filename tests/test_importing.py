"""Every recipe of docs/importing.md runs as it stands, and its tables have all that there is."""

import ast
import inspect
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t2g_jax import advantages, kl, losses, reductions

LIGHT = {"functools", "jax", "numpy", "optax", "t2g_jax"}
"""What recipes may import that is there after `pip install t2g_jax`."""


@pytest.fixture(scope="session")
def page(root):
    return (root / "docs" / "importing.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def recipes(page):
    """The blocks of Python by their headings."""
    sections = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    blocks = {
        name: re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) for name, text in sections
    }
    return {name: found for name, found in blocks.items() if found}


def test_what_there_is(recipes):
    numbers = {name: len(blocks) for name, blocks in recipes.items()}
    assert numbers == {
        "Critiques": 1,
        "Plain optax": 1,
        "Flax NNX": 1,
        "Equinox": 1,
        "`shard_map`": 1,
        "Tunix": 2,
    }
    for blocks in recipes.values():
        for block in blocks:
            assert sum(bool(line.strip()) for line in block.splitlines()) <= 30


@pytest.mark.parametrize("name", ["Critiques", "Flax NNX", "Equinox"])
def test_a_recipe_runs(name, recipes):
    (block,) = recipes[name]
    if name == "Equinox":
        pytest.importorskip("equinox", reason="pip install equinox")
    _run(block)


@pytest.mark.parametrize("name", ["Plain optax", "`shard_map`"])
def test_a_recipe_runs_where_only_the_losses_are_installed(name, recipes, bare_python):
    (block,) = recipes[name]
    assert _imports(block) <= LIGHT
    result = bare_python("-c", block)
    assert result.returncode == 0, result.stderr


def _run(*blocks):
    """Executes blocks one after another in one namespace, which is returned."""
    namespace = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* is now called ", DeprecationWarning)  # ours
        for block in blocks:
            exec(compile(block, "docs/importing.md", "exec"), namespace)
    return namespace


def _imports(block):
    modules = set()
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    return {module.partition(".")[0] for module in modules}


def test_what_an_installation_brings_was_measured(page):
    block = re.search(r"<!-- installation -->\n(.*)<!-- end of installation -->", page, re.S)[1]
    packages = dict(re.findall(r'^\| `pip install "([^"]+)"` \| (\d+) \|', block, re.M))
    assert 0 < 3 * int(packages["t2g_jax"]) < int(packages["t2g_jax[train]"])
    assert re.search(r"^`python -m benchmarks installation` on ", block, re.M)


def test_recipes_use_names_that_exist(recipes):
    """Those, too, that only run where Tunix is."""
    import t2g_jax

    for block in (block for blocks in recipes.values() for block in blocks):
        tree = ast.parse(block)
        imported = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        ours = {a.name for n in imported if n.module == "t2g_jax" for a in n.names}
        assert ours
        assert ours <= set(t2g_jax.__all__)
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        for node in attributes:
            if isinstance(node.value, ast.Name) and node.value.id in ours:
                assert hasattr(getattr(t2g_jax, node.value.id), node.attr), node.attr


def test_tables_have_every_loss(page):
    helpers = {"Correction", "clip_acts", "importance_ratio", "sequence_ratio", "value_clip_acts"}
    helpers |= {"span_probabilities", "span_targets"}
    functions = {
        *(name for name in losses.__all__ if name not in helpers),
        *_functions(advantages),
        *(f"kl.{name}" for name in _functions(kl) if not name.startswith("divergence")),
        *(how.name for how in reductions.Reduction),
    }
    tables = set(re.findall(r"^\| `([\w.]+)` \|", page, re.M))
    assert tables == functions


def _functions(module):
    """Names of the public functions that a module defines."""
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def test_the_recipes_of_tunix(recipes):
    """The loss has the gradient of Tunix's own where nothing is clipped; the learner trains."""
    common = pytest.importorskip(
        "tunix.tests.test_common", reason="pip install google-tunix: 1.6 GB that nothing else needs"
    )
    from flax import nnx
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from tunix.rl import function_registry, rl_cluster
    from tunix.rl.common import TrainExample
    from tunix.rl.grpo.grpo_learner import GRPOConfig
    from tunix.rl.rollout.base_rollout import RolloutConfig

    recipe = _run(*recipes["Tunix"])
    words = Tokenizer(models.WordLevel(common.MockVocab.DEFAULT_MAPPING, "!"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    config = common.ModelConfig(vocab_size=len(tokenizer))
    model = common.ToyTransformer(config, rngs=nnx.Rngs(0))

    rng = np.random.default_rng(0)
    ids = jnp.array(rng.integers(3, 20, (4, 8)))
    mask = jnp.arange(5) < jnp.array([[5], [3], [4], [1]])
    example = TrainExample(
        prompt_ids=ids[:, :3],
        prompt_mask=ids[:, :3] != 0,
        completion_ids=jnp.where(mask, ids[:, 3:], 0),
        completion_mask=mask,
        advantages=jnp.array(rng.normal(size=(4, 5)), jnp.float32),
        ref_per_token_logps=None,
        old_per_token_logps=None,
    )
    theirs = GRPOConfig(beta=0.0, loss_agg_mode="token-mean")
    gradients = []
    for name, algo_config in (("cispo", recipe["algo_config"]), ("grpo", theirs)):
        algo_config.temperature = 1.0
        loss_fn = function_registry.get_policy_loss_fn(name)
        of_model = nnx.grad(
            lambda m, f=loss_fn, c=algo_config: f(m, example, c, 0, 2), has_aux=True
        )
        gradients.append(jax.tree.leaves(of_model(model)[0]))
    for ours, reference in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-6)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=model,
        reference=None,
        tokenizer=tokenizer,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adam(1e-2), eval_every_n_steps=100, max_steps=8
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=10, max_prompt_length=16, kv_cache_size=32
            ),
        ),
    )
    learner = recipe["SpanLearner"](
        rl_cluster=cluster,
        reward_fns=lambda prompts, completions, **_: [0.0] * len(completions),
        algo_config=recipe["algo_config"],
    )
    hello, world = tokenizer.convert_tokens_to_ids(["Hello", "world"])

    def liked():  # how much likelier the word that is praised is than the one that is faulted
        actor = cluster.actor_trainer.model
        logits, _ = actor(jnp.full((1, 4), 10), positions=jnp.arange(4)[None], attention_mask=None)
        return float(logits[0, -1, hello] - logits[0, -1, world])

    before = liked()
    learner.train([{"prompts": np.array(["My name"] * 4)} for _ in range(8)])
    assert liked() > before + 0.1
