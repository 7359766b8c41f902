"""Names that have changed are still understood, and say their new name."""

import pytest

import t2g_jax
from t2g_jax import advantages, logprobs, losses, methods, spans
from t2g_jax.config import Config, base
from t2g_jax.run import provenance

MODULES = (t2g_jax, advantages, logprobs, losses, methods, spans)
OLD_NAMES = [(m, old, new) for m in MODULES for old, new in m._old_names.items()]


def test_no_old_name_is_forgotten():
    """What could be imported before the names changed."""
    assert {f"{module.__name__}.{old}" for module, old, _ in OLD_NAMES} >= {
        "t2g_jax.feedback_nll",
        "t2g_jax.first_turn",
        "t2g_jax.group_centred",
        "t2g_jax.reduce",
        "t2g_jax.advantages.group_centred",
        "t2g_jax.logprobs.Spread",
        "t2g_jax.logprobs.from_hidden",
        "t2g_jax.logprobs.from_logits",
        "t2g_jax.losses.feedback_nll",
        "t2g_jax.methods.RLTFFeedbackModelling",
        "t2g_jax.spans.carry_spans",
        "t2g_jax.spans.carry_values",
    }


@pytest.mark.parametrize(("module", "old", "new"), OLD_NAMES)
def test_an_old_name_works_and_says_the_new_one(module, old, new):
    with pytest.warns(DeprecationWarning, match=rf"{old} is now called {new}\b") as warned:
        found = getattr(module, old)
    assert found is getattr(module, new)
    assert {warning.filename for warning in warned} == {__file__}
    assert old not in getattr(module, "__all__", vars(module))


@pytest.mark.parametrize("module", MODULES)
def test_any_other_name_is_no_attribute(module):
    with pytest.raises(AttributeError, match=r"has no attribute 'clipped_surogate'"):
        _ = module.clipped_surogate


@pytest.mark.parametrize("section", ["grpo", "grpo_multiturn"])
def test_an_old_word_of_the_config_is_understood_and_says_the_new_one(section):
    with pytest.warns(FutureWarning, match="advantage: 'centred' is now called 'centered'"):
        config = base.changed(
            Config(name="run"), {section: {"advantage": "centred"}}, source="run.yaml"
        )
    assert config == Config(name="run")
    assert "centred" not in base.to_yaml(config)


def test_an_old_word_in_a_record_is_no_change():
    record = {"inputs": {"grpo.advantage": "centred", "grpo.epsilon": 1}}
    assert provenance._in_new_words(record)["inputs"] == {
        "grpo.advantage": "centered",
        "grpo.epsilon": 1,
    }


def test_from_import_warns_where_it_stands():
    program = "from t2g_jax import reduce\nfrom t2g_jax.losses import feedback_nll\n"
    with pytest.warns(DeprecationWarning, match="is now called") as warned:
        exec(compile(program, "program.py", "exec"), {})
    assert {(warning.filename, warning.lineno) for warning in warned} == {
        ("program.py", 1),
        ("program.py", 2),
    }
