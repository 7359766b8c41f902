"""The sections of the methods: every setting reaches what it is about, and none is idle."""

import dataclasses
import re

import pytest
import tiny
import yaml

from t2g_jax.config import (
    METHODS,
    Config,
    ConfigError,
    PolicyConfig,
    RolloutConfig,
    load_config,
    to_yaml,
)
from t2g_jax.methods import make_method
from t2g_jax.reductions import Reduction
from t2g_jax.training.forward import CUTOFFS
from t2g_jax.training.terms import (
    KL_WEIGHT,
    REF_LOGPROBS,
    RETURNS,
    KLToReference,
    PolicyGradient,
    SelfDistillation,
    Value,
)


def term_of(plan, kind):
    (term,) = (term for term in plan.objective.terms if isinstance(term, kind))
    return term


SECTIONS = {name: name.replace("-", "_") for name in METHODS}


def names_of(section: type) -> set[str]:
    return {field.name for field in dataclasses.fields(section)}


# A value that is not the default, and where it ends up in `UpdatePlan`, or the term that reads it.
ROLLOUT = {
    "steps": (9, "steps"),
    "token_budget": (999, "token_budget"),
    "epochs": (3, "epochs"),
    "minibatches": (4, "minibatches"),
    "micro_batches": (2, "micro_batches"),
}
POLICY = {
    "surrogate": ("cispo", PolicyGradient),
    "epsilon_low": (0.1, PolicyGradient),
    "epsilon_high": (0.3, PolicyGradient),
    "reduction": ("sequence_mean_token_sum", "objective.reduction"),
}
CRITIC = {
    "value_coefficient": (0.7, Value),
    "value_clip": (0.7, Value),
}
OWN = {
    "text2grad": CRITIC,
    "ppo": CRITIC,
    "rltf-sd": {
        "correction": ("cispo", SelfDistillation),
        "logprob_floor": (-2.0, SelfDistillation),
    },
}
# Those that shape what is collected, each with a test of its own in this folder or in phases/.
ELSEWHERE = {
    # test_base, test_policy
    *"optimizer eval_every prompts_per_step group_size rows_at_once".split(),
    # test_reference, and below
    *"kl kl_in kl_coefficient adaptive_kl_target_per_sequence adaptive_kl_horizon".split(),
    "log_kl",  # test_needs
    *"gamma gae_lambda whiten".split(),  # test_ppo
    *"baseline span_source fade_after reward reward_threshold".split(),  # test_text2grad
    *"advantage resample_rounds overlong_tokens turns".split(),  # test_grpo, test_episodes
    # test_rltf
    *"distill_coefficient distill_schedule baseline critique_correct".split(),
    "feedback_coefficient",
    "least_reward",  # test_rejection_sampling
}


def settings_of(name):
    policy = {} if name == "rejection-sampling" else POLICY
    return ROLLOUT | policy | OWN.get(name, {})


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name in METHODS for field in settings_of(name)]
)
def test_fields_reach_the_plan_or_their_term(tiny_context, name, field):
    value, where = settings_of(name)[field]
    section = SECTIONS[name]
    assert getattr(getattr(tiny_context.config, section), field) != value
    context = tiny.changed(tiny_context, **{f"{section}__{field}": value})
    plan = make_method(name, context).plan
    if not isinstance(where, str):  # a term, which reads the section itself
        settings = term_of(plan, where).settings
        assert settings is getattr(context.config, section)
        assert getattr(settings, field) == value
        return
    found = plan
    for part in where.split("."):
        found = getattr(found, part)
    assert found == (Reduction(value) if field == "reduction" else value)


@pytest.mark.parametrize("name", METHODS)
def test_no_field_is_forgotten_here(tiny_context, name):
    fields = names_of(type(getattr(tiny_context.config, SECTIONS[name])))
    assert sorted(fields - set(settings_of(name)) - ELSEWHERE) == []
    shared = names_of(RolloutConfig if name == "rejection-sampling" else PolicyConfig)
    assert fields >= shared


@pytest.mark.parametrize("name", METHODS)
def test_what_the_sampler_does_reaches_the_objective(tiny_context, name):
    changes = {"sampling__temperature": 0.7, "sampling__top_k": 3, "sampling__max_new_tokens": 20}
    method = make_method(name, tiny.changed(tiny_context, **changes))
    objective, policy = method.plan.objective, name != "rejection-sampling"
    assert objective.temperature == (0.7 if policy else 1.0)
    assert (CUTOFFS in objective.fields) == policy
    assert not policy or objective.longest == 20
    assert (RETURNS in objective.fields) == ("value_clip" in settings_of(name))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "rejection-sampling"])
def test_a_term_for_the_divergence_is_learned_if_it_is_in_the_loss(tiny_context, name):
    section = SECTIONS[name]
    for where in ("reward", "loss"):
        values = {"kl": None, "kl_in": where, "kl_coefficient": 0.3}
        context = tiny.changed(tiny_context, **{f"{section}__{k}": v for k, v in values.items()})
        plan, section_of = make_method(name, context).plan, getattr(context.config, section)
        assert section_of.divergence == ({"reward": "k1", "loss": "k3"}[where], where)
        assert ({KL_WEIGHT, REF_LOGPROBS} <= set(plan.objective.fields)) == (where == "loss")
        if where == "loss":
            assert term_of(plan, KLToReference).settings is section_of
        assert plan.carry == {"kl_coefficient": 0.3}


# --- Which divergence, and where it is charged -------------------------------------------------

POLICIES = [name for name in METHODS if name != "rejection-sampling"]


def with_critic(name):
    return name in ("ppo", "text2grad")


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"kl": "k1"}, ("k1", "reward")),
        ({"kl": "full"}, ("full", "reward")),
        ({"kl": "k2"}, ("k2", "loss")),
        ({"kl": "k3"}, ("k3", "loss")),
        ({"kl": "abs"}, ("abs", "loss")),
        ({"kl_in": "reward"}, ("k1", "reward")),
        ({"kl_in": "loss"}, ("k3", "loss")),
    ],
)
def test_what_is_left_out_follows_what_is_given_and_the_kind_of_method(name, given, expected):
    section = dataclasses.replace(getattr(Config(name="x"), SECTIONS[name]), kl_coefficient=0.1)
    section = dataclasses.replace(section, **given)
    default = ("k1", "reward") if with_critic(name) else ("k3", "loss")
    assert section.divergence == (expected or default)


@pytest.mark.parametrize("name", POLICIES)
def test_a_coefficient_of_0_charges_nothing_anywhere(tiny_context, name):
    section = SECTIONS[name]
    context = tiny.changed(
        tiny_context, **{f"{section}__kl_coefficient": 0.0, f"{section}__kl_in": None}
    )
    method = make_method(name, context)
    assert KL_WEIGHT not in method.plan.objective.fields
    assert method.reference is None
    assert method.plan.carry == {}


@pytest.mark.parametrize("section", sorted(SECTIONS.values()))
@pytest.mark.parametrize(
    ("kl", "where", "expected"),
    [
        *[(kl, "reward", "cannot be a reward: k2, k3 and abs do not pull") for kl in ("k2", "k3")],
        ("abs", "reward", "use k1 or full, or kl_in: loss"),
        ("k1", "loss", "cannot be a term of the loss: k1 has no gradient on average"),
        ("full", "loss", "use k2, k3 or abs, or kl_in: reward"),
    ],
)
def test_estimators_in_the_wrong_place_are_refused(loaded, section, kl, where, expected):
    if section == "rejection_sampling":
        return
    with pytest.raises(ConfigError) as caught:
        loaded(f"{section}: {{kl: {kl}, kl_in: {where}, kl_coefficient: 0.1}}")
    assert f"in `{section}`: kl ({kl})" in str(caught.value)
    assert expected in str(caught.value)


def test_defaults_survive_being_written_and_read(loaded):
    """Left out stays left out: another `kl` on top still finds its place."""
    for text in ("grpo: {kl_coefficient: 0.1}", "text2grad: {kl: full}", "{}"):
        config = loaded(text)
        assert loaded(to_yaml(config)) == config
    changed = dataclasses.replace(loaded("grpo: {kl_coefficient: 0.1}").grpo, kl="k1")
    assert changed.divergence == ("k1", "reward")


# --- Settings that would have no effect --------------------------------------------------------


@pytest.fixture
def loaded(tmp_path):
    """loaded(text): the config that a file of this text is."""

    def loaded(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)

    return loaded


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grpo: {surrogate: reinforce, epsilon_low: 0.1}", "no effect with surrogate: reinforce"),
        ("ppo: {surrogate: reinforce, epsilon_high: 0.3}", "no effect with surrogate: reinforce"),
        ("rltf_sd: {surrogate: reinforce, epsilon_high: 0.3}", "epsilon_low and epsilon_high"),
        (
            "rltf_sd: {surrogate: reinforce, correction: importance, epsilon_low: 0.3}",
            "in `rltf_sd`: epsilon_low and epsilon_high have no effect",
        ),
        ("grpo: {kl_in: loss}", "in `grpo`: kl_in: loss needs a kl_coefficient above 0"),
        (
            "grpo: {adaptive_kl_target_per_sequence: 6}",
            "needs a kl_coefficient above 0 to start from",
        ),
        ("grpo: {adaptive_kl_target: 6}", "did you mean `grpo.adaptive_kl_target_per_sequence`?"),
        (
            "ppo: {adaptive_kl_horizon: 500}",
            "in `ppo`: adaptive_kl_horizon (500) has no effect without adaptive_kl_target",
        ),
        (
            "rltf_sd: {kl_coefficient: 0.1, adaptive_kl_target_per_sequence: 6, "
            "adaptive_kl_horizon: 51}",
            "adaptive_kl_horizon (51) must be more than a fifth of the completions of a round (256",
        ),
        ("ppo: {kl: k1, kl_in: loss}", "in `ppo`: kl (k1) cannot be a term of the loss"),
        ("text2grad: {kl: full, kl_in: loss}", "kl (full) cannot be a term of the loss"),
        (
            "rltf_sd: {distill_schedule: linear, distill_coefficient: 0.0}",
            "distill_schedule: linear needs a distill_coefficient above 0",
        ),
        (
            "text2grad: {reward: hard, span_source: judge}",
            "reward: hard is about the reward model's classes, but span_source is judge",
        ),
        (
            "text2grad: {reward_threshold: 0.5}",
            "reward_threshold (0.5) has no effect with reward: expected",
        ),
        (
            "text2grad: {baseline: group, gae_lambda: 0.9}",
            "gae_lambda (0.9) has no effect with baseline: group, which has no value head",
        ),
        (
            "text2grad: {baseline: batch, value_coefficient: 0.2}",
            "value_coefficient (0.2) has no effect with baseline: batch",
        ),
        ("text2grad: {baseline: group, group_size: 1}", "baseline: group needs a group_size of at"),
        ("text2grad: {baseline: batch, whiten: false}", "baseline: batch needs whiten: true"),
        (
            "reward_model: {class_weights: [0, 1, 1]}",
            "`reward_model.class_weights.0` is 0; must be greater than 0",
        ),
        ("text2grad: {fade_after: 64}", "text2grad.fade_after (64) must be less than sampling.max"),
        ("grpo: {overlong_tokens: 65}", "grpo.overlong_tokens (65) must not exceed sampling.max"),
        ("rltf_fm: {turns: 1}", "`rltf_fm.turns` is 1; must be greater than or equal to 2"),
        ("grpo_multiturn: {group_size: 1}", "group_size must be at least 2"),
        ("grpo: {group_size: 1}", "group_size must be at least 2"),
        ("grpo: {minibatches: 3}", "must be a multiple of minibatches × micro_batches (3)"),
    ],
)
def test_settings_without_effect_are_refused(loaded, text, expected):
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "grpo: {surrogate: reinforce}",
        "rltf_sd: {surrogate: reinforce, correction: ppo, epsilon_high: 0.3}",
        "rltf_sd: {surrogate: reinforce, correction: cispo, epsilon_low: 0.3}",
        "rltf_sd: {distill_schedule: linear}",
        "text2grad: {fade_after: 63}",
        "text2grad: {reward: hard, reward_threshold: 0.5}",
        "grpo: {overlong_tokens: 64}",
        "ppo: {group_size: 1}",
        "rejection_sampling: {group_size: 1, turns: 1}",
    ],
)
def test_their_neighbors_are_not(loaded, text):
    loaded(text)


# --- docs/methods.md ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "methods.md").read_text()


def variants(page):
    return dict(re.findall(r"^\| ([\w. ]+), \[.*?\| `(grpo: \{.*\})` \|$", page, re.M))


def test_the_variants_of_grpo_are_configs(page, loaded):
    found = variants(page)
    assert list(found) == ["GRPO", "Dr. GRPO", "RLOO", "DAPO", "CISPO", "GSPO"]
    configs = {name: loaded(text).grpo for name, text in found.items()}
    assert len(set(map(repr, configs.values()))) == len(configs)
    for name, text in found.items():
        for field, value in yaml.safe_load(text)["grpo"].items():
            loaded_value = getattr(configs[name], field)
            assert loaded_value == type(loaded_value)(value)  # YAML 1.1 takes 3e-4 for a word


@pytest.mark.parametrize("variant", ["Dr. GRPO", "RLOO", "GSPO"])
def test_the_variants_of_grpo_learn_what_they_say(page, loaded, tiny_context, variant):
    config = loaded(variants(page)[variant])
    context = dataclasses.replace(
        tiny_context, config=dataclasses.replace(tiny_context.config, grpo=config.grpo)
    )
    objective = make_method("grpo", context).plan.objective
    settings = term_of(make_method("grpo", context).plan, PolicyGradient).settings
    assert (settings.surrogate, objective.reduction) == {
        "Dr. GRPO": ("ppo", Reduction.SEQUENCE_MEAN_TOKEN_SUM),
        "RLOO": ("reinforce", Reduction.SEQUENCE_MEAN_TOKEN_SUM),
        "GSPO": ("gspo", Reduction.SEQUENCE_MEAN_TOKEN_MEAN),
    }[variant]


def test_every_method_and_its_own_settings_are_on_the_page(page, tiny_context):
    for name, section in SECTIONS.items():
        assert re.search(rf"^\| \[{name}\]\(#{name}\) \|.*\| `{section}` \|$", page, re.M)
        assert f"\n## {name}\n" in page
    sections = [type(getattr(tiny_context.config, section)) for section in SECTIONS.values()]
    shared = names_of(RolloutConfig) | set(CRITIC) | {"epsilon_low", "gae_lambda", "whiten"}
    own = set().union(*map(names_of, sections)) - shared
    assert sorted(field for field in own if field not in page) == []


# --- docs/deviations.md ------------------------------------------------------------------------


def test_what_brings_the_original_back_is_a_config(root, loaded):
    """The last column, for every row of every table; those that are the default change nothing."""
    page = (root / "docs" / "deviations.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0].strip() != "original"]
    assert len(rows) > 20
    assert {len(row) for row in rows} == {4}
    found = [(text, row[3]) for row in rows for text in re.findall(r"`(\w+: \{.*?\})`", row[3])]
    assert len(found) > 10
    for text, cell in found:
        config, ((section, values),) = loaded(text), yaml.safe_load(text).items()
        default = getattr(loaded(""), section)
        changed = [name for name in values if getattr(default, name) != values[name]]
        assert bool(changed) != ("the default" in cell), text
        assert all(getattr(getattr(config, section), name) == values[name] for name in values)


def test_the_page_of_deviations_is_linked(root):
    for name in ("README.md", "docs/methods.md"):
        assert "deviations.md" in (root / name).read_text()
