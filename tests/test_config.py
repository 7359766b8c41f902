"""Configurations: what a file may say, and what is said about one that is wrong."""

import dataclasses
import inspect
import pathlib
import re
import typing

import pydantic
import pytest

from t2g_jax import config as schema
from t2g_jax.config import Config, ConfigError, changes, config_hash, diff, load_config, to_yaml
from t2g_jax.config.base import Section, differences, with_environment
from t2g_jax.config.overrides import override, print_options

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def error_of(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_empty_file_is_the_defaults_and_names_itself(write):
    assert load_config(write("", "first_try.yaml")) == Config(name="first-try")


def test_file_changes_only_what_it_says(write):
    # sft.optimizer differs from OptimizerConfig's own defaults, and must keep doing so.
    config = load_config(write("sft: {optimizer: {learning_rate: 2e-3}}\nmethods: [grpo]"))
    default = Config(name="run")
    assert config.sft.optimizer.learning_rate == 2e-3
    assert config.sft.optimizer.schedule == default.sft.optimizer.schedule != "constant"
    assert config.methods == ("grpo",)
    assert diff(config, default) == ["methods", "sft.optimizer.learning_rate"]


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "0.001", "1E-3"])
def test_every_spelling_of_a_number(write, number):
    config = load_config(write(f"grpo: {{optimizer: {{learning_rate: {number}}}}}"))
    assert config.grpo.optimizer.learning_rate == 0.001


def test_overrides_go_on_top_of_the_file(write):
    path = write("seed: 1\nsft: {steps: 5}")
    overrides = "--sft.steps 7 --model.width=64 --ppo.whiten false --rltf-sd.logprob-floor -9.5"
    config = load_config(path, overrides.split())
    assert (config.seed, config.sft.steps, config.model.width) == (1, 7, 64)
    assert config.ppo.whiten is False
    assert config.rltf_sd.logprob_floor == -9.5


@pytest.mark.parametrize("nothing", ["none", "null", "None"])
def test_override_with_nothing(write, nothing):
    config = load_config(write(""), ["--rltf_sd.logprob_floor", nothing])
    assert config.rltf_sd.logprob_floor is None


def test_override_with_several_values(write):
    config = load_config(
        write(""), "--methods grpo text2grad --reward_model.class_weights 1 0.5 2".split()
    )
    assert config.methods == ("grpo", "text2grad")
    assert config.reward_model.class_weights == (1.0, 0.5, 2.0)


def test_overrides_are_checked_together(write):
    path = write("model: {heads: 4, kv_heads: 2}")
    assert "kv_heads" in error_of(path, "--model.heads", "3")
    assert load_config(path, "--model.heads 3 --model.kv_heads 3 --model.width 96".split())


def test_free_dictionary_takes_any_name(write):
    path = write("task: {settings: {min_n: 2}}")
    config = load_config(path, ["--task.settings.max_n", "4", "--task.settings.p_zero=0.5"])
    assert config.task.settings == {"min_n": 2, "max_n": 4, "p_zero": 0.5}
    assert "`--task.settings.NAME VALUE`" in error_of(path, "--task.settings", "max_n", "4")
    assert "needs a value" in error_of(path, "--task.settings.max_n")
    config = load_config(path, ["--tokenizer.template_options.enable_thinking", "false"])
    assert config.tokenizer.template_options == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("judge: {settings: {a: 1}}", "settings (a) are for a judge of your own, or for name: pol"),
        ("judge: {batch_size: 0}", "`judge.batch_size` is 0; must be greater than 0"),
        ("judge: {name: polizy}", "must be 'task', 'policy', or 'package.module:factory'"),
        ("judge: {settings: {a: [.inf]}}", "in `judge.settings`: `a.0` is inf; must be a finite"),
        ("judge: {settings: 3}", "`judge.settings` is 3; must be an object"),
        ("sft: {stps: 3}", "unknown key `sft.stps`; did you mean `sft.steps`?"),
        ("sft.steps: 3", "unknown key `sft.steps`; in a file it is `sft: {steps: …}`"),
        ("sft.optimizer.b1: 0", "in a file it is `sft: {optimizer: {b1: …}}`"),
        ('"a\\nb": 3', "unknown key `a␊b`"),
        ("tokenizer: {template_options: {a: [1]}}", "`tokenizer.template_options.a` is [1]; "),
        ("sed: 3", "unknown key `sed`; did you mean `seed`?"),
        ("text2grad: {optimzer: {b1: 0}}", "did you mean `text2grad.optimizer`?"),
        ("group_size: 3", "did you mean `text2grad.group_size` or `ppo.group_size`"),
        ("judge: {xyz: 1}", "unknown key `judge.xyz`; known: level"),
        ("sft: {steps: many}", '`sft.steps` is "many"; must be a valid integer'),
        ("sft: {steps: '3'}", '`sft.steps` is "3"; must be a valid integer'),
        ("sft: {steps: true}", "`sft.steps` is true; must be a valid integer"),
        ("sft: {steps: 1.5}", "`sft.steps` is 1.5; must be a valid integer"),
        ("grpo: {steps: 0}", "`grpo.steps` is 0; must be greater than 0"),
        ("lora: {rank: -1}", "`lora.rank` is -1; must be greater than or equal to 0"),
        ("lora: {alpha: 0}", "`lora.alpha` is 0; must be greater than 0"),
        ("seed: -1", "`seed` is -1; must be greater than or equal to 0"),
        ("model: {tie_embeddings: 1}", "`model.tie_embeddings` is 1; must be a valid boolean"),
        ("sampling: {top_p: 0}", "`sampling.top_p` is 0; must be greater than 0"),
        ("sampling: {top_p: 1.1}", "`sampling.top_p` is 1.1; must be less than or equal to 1"),
        ("text2grad: {gamma: 2}", "`text2grad.gamma` is 2; must be less than or equal to 1"),
        ("annotate: {held_out: 1.0}", "`annotate.held_out` is 1.0; must be less than 1"),
        ("grpo: {epsilon_low: .nan}", "`grpo.epsilon_low` is NaN"),
        ("grpo: {optimizer: {learning_rate: .inf}}", "is Infinity; must be a finite number"),
        ("grpo: {optimizer: {learning_rate: 1.0e+39}}", "too large for float32"),
        ("grpo: {optimizer: {learning_rate: 1.0e-320}}", "too small for float32"),
        ("sft: {optimizer: {b1: 1}}", "`sft.optimizer.b1` is 1; must be less than or equal to 0.9"),
        ("sft: {optimizer: {b2: 0.99999999}}", "`sft.optimizer.b2` is 0.99999999; must be less"),
        ("sft: {optimizer: {eps: 1.0e-320}}", "`sft.optimizer.eps` is 1e-320; must be greater"),
        ("sft: {optimizer: {clip_norm: 1.0e-320}}", "`sft.optimizer.clip_norm`"),
        ("sft: {optimizer: {weight_decay: 1.0e+300}}", "too large for float32"),
        ("model: {rope_theta: 1.0e-37}", "`model.rope_theta` is 1e-37; must be greater than 1"),
        ("lora: {alpha: 1.0e-37}", "in `lora.alpha`: 1e-37 is too small for float32"),
        ("lora: {alpha: 1.0e+38}", "in `lora.alpha`: 1e+38 is too large for float32"),
        (
            "reward_model: {class_weights: [1, 1.0e-30, 1]}",
            "in `reward_model.class_weights.1`: 1e-30 is too small for float32",
        ),
        ("model: {rope_theta: 1}", "`model.rope_theta` is 1; must be greater than 1"),
        ("sampling: {temperature: 1.0e-40}", "`sampling.temperature` is 1e-40; must be greater"),
        (
            "annotate: {temperatures: [1, 1.0e+9]}",
            "`annotate.temperatures.1` is 1000000000.0; must",
        ),
        ("rltf_sd: {logprob_floor: -1.0e+300}", "too large for float32"),
        ("rltf_sd: {turns: 1}", "`rltf_sd.turns` is 1; must be greater than or equal to 2"),
        ("rltf_sd: {turns: 1" + 21 * "0" + "}", "must be less than or equal to 64"),
        ("rejection_sampling: {turns: 65}", "must be less than or equal to 64"),
        ("judge: {workers: 2147483647}", "must be less than or equal to 1024"),
        ("judge: {timeout_seconds: 1.0e+10}", "must be less than or equal to 1000000"),
        ("training: {watchdog_minutes: 1.0e+9}", "must be less than or equal to 1000000"),
        ("rltf_sd: {logprob_floor: low}", '`rltf_sd.logprob_floor` is "low"; must be a valid num'),
        ("task: {settings: {n: x}}", "in `task`: settings.n is 'x'; must be a number"),
        ("task: {settings: {n: true}}", "in `task`: settings.n is True; must be a number"),
        ("task: {name: dta}", "in `task`: name is 'dta'; must be one of binary_matrix, "),
        ("task: {name: data, preset: paper}", "in `task`: preset of the puzzles; leave it out"),
        ("task: {name: 'a:b', seed: 1, test_size: 2}", "seed, test_size of the puzzles"),
        ("task: {preset: huge}", "`task.preset` is \"huge\"; must be 'paper' or 'tiny'"),
        ("methods: [dpo]", "`methods.0` is \"dpo\"; must be 'text2grad', 'ppo', 'rltf-sd', "),
        ("methods: []", "methods is empty"),
        ("methods: [grpo, grpo]", "names one twice"),
        ("reward_model: {class_weights: [1, 2]}", "`reward_model.class_weights.2` is missing"),
        ("reward_model: {critique_weight: 0, span_weight: 0}", "nothing would be learned"),
        ("sft: 4", "`sft` is 4; must be a section of `key: value` lines"),
        ("sft:", "`sft` is null; must be a section"),
        ("model: {heads: 3}", "in `model`: heads (3) must be a multiple of kv_heads (2)"),
        ("model: {width: 130}", "in `model`: width (130) must be a multiple of heads (4)"),
        ("model: {width: 12}", "in `model`: the head width (3) must be even"),
        ("mesh: {data: -2}", "must be a positive number of devices, or -1"),
        ("mesh: {fsdp: -1}", "only one may be -1"),
        ("tokenizer: {vocabulary_size: 256}", "must be at least 300"),
        ("sft: {micro_batches: 3}", "batch_size (64) must be a multiple of micro_batches (3)"),
        ("text2grad: {minibatches: 7}", "must be a multiple of minibatches × micro_batches (7)"),
        ("grpo: {group_size: 1}", "group_size must be at least 2"),
        ("sampling: {max_new_tokens: 512}", "must be less than model.context_length (512)"),
        ("sft: {examples: 20000}", "sft.examples (20000) must not exceed task.train_size (19800)"),
        ("annotate: {prompts: 20000}", "annotate.prompts (20000) must not exceed"),
        (
            "reward_model: {critique_conditioned: true, max_critique_tokens: 512}",
            "reward_model.max_critique_tokens (512) must be less than model.context_length (512)",
        ),
        ("name: a/b", "name ('a/b') becomes a folder"),
        ("a: [", "line 1: not valid YAML"),
        ("seed: 1\nseed: 2", "line 2: not valid YAML: the key 'seed' appears twice"),
        ("- 1", "expected `key: value` lines"),
    ],
)
def test_wrong_file(write, text, expected):
    path = write(text)
    message = error_of(path)
    assert expected in message
    assert message.startswith(str(path))


def test_all_problems_are_reported_at_once(write):
    message = error_of(write("seed: x\nsft: {stps: 3, steps: -1}"))
    assert len(message.splitlines()) == 3
    assert all(key in message for key in ("`seed`", "`sft.stps`", "`sft.steps`"))


def test_file_that_is_not_there(tmp_path):
    assert error_of(tmp_path / "no.yaml").endswith(
        "no.yaml: cannot be read: No such file or directory"
    )


def test_file_that_is_not_text(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8 text" in error_of(path)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("--sft.stps 3", "unknown option `--sft.stps`; did you mean `--sft.steps`?"),
        ("--gamma 1", "did you mean `--text2grad.gamma` or `--ppo.gamma` or"),
        ("--sft 3", "`--sft` is a section; set a field, e.g. `--sft.optimizer.name`"),
        ("--sft.steps many", '`sft.steps` is "many"; must be a valid integer'),
        ("--sft.steps -3", "`sft.steps` is -3; must be greater than or equal to 0"),
        ("--sft.steps", "`--sft.steps` needs a value"),
        ("--methods grpo dpo", "`methods.1` is \"dpo\"; must be 'text2grad', 'ppo'"),
        ("--seed 1 more", "more"),
        ("more", "more"),
        ("--task.settings.max_n [", "`--task.settings.max_n`, line 1: not valid YAML"),
        ("--task.settings.max_n x", "in `task`: settings.max_n is 'x'; must be a number"),
        ("--=3", "unknown option `--`"),
        ("--a..b 1", "unknown option `--a..b`"),
        ("--task.settings. 1", "unknown option `--task.settings.`"),
        ("--sft.steps --seed 1", "`--sft.steps` needs a value"),
        ("--methods", "`--methods` needs a value"),
        ("--methods grpo,ppo", "separated by blanks alone: `--methods grpo ppo`"),
        ("--methods=[grpo,ppo]", "separated by blanks alone: `--methods grpo ppo`"),
        ("--methods [grpo, ppo]", "separated by blanks alone: `--methods grpo ppo`"),
        ("--methods 'grpo' \"ppo\"", "separated by blanks alone: `--methods grpo ppo`"),
        ("--annotate.temperatures 1,2", "by blanks alone: `--annotate.temperatures 1 2`"),
        ("–methods grpo", "`–methods`: options begin with two hyphens, `--methods`"),
        ("-methods grpo", "`-methods`: options begin with two hyphens, `--methods`"),
        ("—sft.steps=3", "`—sft.steps=3`: options begin with two hyphens, `--sft.steps`"),
        ("seed=3", "`seed=3`: options begin with two hyphens, `--seed`"),
        ("sft.steps 3", "`sft.steps`: options begin with two hyphens, `--sft.steps`"),
        ("--seed 1_000", '`seed` is "1_000"; must be a valid integer; write 1000'),
        ("--seed 1,000", '`seed` is "1,000"; must be a valid integer; write 1000'),
        ("--grpo.gamma 0", "did you mean"),
        ("--ppo.gamma 0,5", '`ppo.gamma` is "0,5"; must be a valid number; write 0.5'),
        ("--rltf_sd.logprob_floor −5", "must be a valid number; write -5"),
        ("--ppo.whiten yes", '`ppo.whiten` is "yes"; must be a valid boolean; write true'),
        ("--ppo.whiten off", '`ppo.whiten` is "off"; must be a valid boolean; write false'),
        ("--seed ٣", "must be a valid integer"),
        ("--SEED 3", "did you mean `--seed`?"),
        (f"--seed {'9' * 5000}", "an integer of 5000 digits is too long"),
        ("--seed 18446744073709551616", "`seed` is 18446744073709551616; must be less than"),
        ("--grpo.optimizer.learning_rate 1e-400", "too small for a float"),
        ("--name \udcff", "is not UTF-8 text"),
        ("--seed=3 --seed=4", "`--seed 3` and `--seed 4` set the same value; leave one out"),
        ("--seed 3 --sft.steps 2 --seed 3", "`--seed 3` and `--seed 3` set the same value"),
        ("--rltf_sd.steps 3 --rltf-sd.steps=4", "`--rltf_sd.steps 3` and `--rltf-sd.steps 4` set"),
        ("--methods grpo --methods ppo grpo", "`--methods grpo` and `--methods ppo grpo` set"),
        ("--task.settings.n 3 --task.settings.n 4", "`--task.settings.n 3` and `--task.settings."),
    ],
)
def test_wrong_override(write, overrides, expected):
    message = error_of(write(""), *overrides.split())
    assert expected in message
    assert message.startswith("command line: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("--seed 0042", "seed", 42),
        ("--seed 0x1F", "seed", 31),
        ("--name 0042", "name", "0042"),
        ("--name null", "name", "null"),
        ("--judge.name my.judge:make", "judge.name", "my.judge:make"),
        ("--model.pretrained 12", "model.pretrained", "12"),
        ("--ppo.whiten FALSE", "ppo.whiten", False),
        ("--methods=grpo ppo", "methods", ["grpo", "ppo"]),
        ("--tokenizer.template_options.n 3", "tokenizer.template_options.n", 3),
        ("--tokenizer.template_options.n '3'", "tokenizer.template_options.n", "3"),
    ],
)
def test_a_word_means_what_it_means_in_yaml(write, words, key, value):
    config = load_config(write(""), words.split())
    assert schema.base.values(config)[key] == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 12:30", '`seed` is "12:30"; must be a valid integer'),
        ("seed: 1_000", "must be a valid integer; write 1000"),
        ("seed: 2024-01-01", '`seed` is "2024-01-01"; must be a valid integer'),
        ("ppo: {whiten: on}", '`ppo.whiten` is "on"; must be a valid boolean; write true'),
        ("name: 0042", "`name` is 42; must be a valid string; put it in quotes"),
        ("a: &a [*a]", "line 1: *a stands inside"),
        ("? [1]\n: 2", "line 1: a key is a list"),
        ("task: {settings: {1: 2}}", "line 1: the key 1 is no text"),
        ("tokenizer: {vocabulary_size: 1000000000000}", "must be less than or equal to"),
        ("grpo: {prompts_per_step: 100000000000000}", "must be less than or equal to"),
        ("model: {context_length: 1000000000000}", "must be less than or equal to"),
    ],
)
def test_what_a_file_cannot_say(write, text, expected):
    path = write(text)
    message = error_of(path)
    assert expected in message
    assert "\n" not in message
    assert message.startswith(str(path))


@pytest.mark.parametrize("name", ["0042", "1e3", "on", "null", "12.5", "0x1F", "true", "2024-01"])
def test_names_that_look_like_something_else_survive(write, name):
    config = load_config(write(f"name: '{name}'"))
    assert load_config(write(to_yaml(config), "again.yaml")).name == name


def test_yaml_round_trip(write):
    text = "task: {settings: {n: 3, p: 0.5}}\nrltf_sd: {logprob_floor: null}\nseed: 7\nname: run-7"
    config = load_config(write(text), ["--sft.optimizer.learning_rate", "1e-7"])
    assert load_config(write(to_yaml(config), "again.yaml")) == config


def test_hash_changes_with_any_value_and_with_nothing_else():
    config = Config(name="run")
    assert config_hash(config) == config_hash(Config(name="run"))
    assert re.fullmatch("[0-9a-f]{16}", config_hash(config))
    changed = [
        dataclasses.replace(config, seed=1),
        dataclasses.replace(config, sft=dataclasses.replace(config.sft, steps=401)),
        dataclasses.replace(config, task=dataclasses.replace(config.task, settings={"n": 3})),
    ]
    assert len({config_hash(c) for c in [config, *changed]}) == 4
    assert config_hash(config.sft) == config_hash(changed[0].sft)


@dataclasses.dataclass(frozen=True)
class Sample(Section):
    count: int = 3
    rate: float = 0.1
    words: tuple[str, ...] = ("à", "b")
    maybe: float | None = None


def test_hash_is_the_same_on_every_machine_and_in_every_release():
    # Artifacts carry hashes: what was written once must be recognized later.
    assert config_hash(Sample()) == "bba7cc52798d9e0d"


def test_diff_names_fields_and_dictionary_entries():
    a = Config(name="run")
    b = dataclasses.replace(a, task=dataclasses.replace(a.task, settings={"n": 3}, seed=1))
    assert diff(a, a) == []
    assert diff(a, b) == diff(b, a) == ["task.settings.n", "task.seed"]
    assert changes(a, b) == ["task.settings.n: nothing → 3", "task.seed: 0 → 1"]


def test_the_best_checkpoint_is_evaluated_only_if_it_is_kept(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("evaluate: {checkpoint: best}\n")
    with pytest.raises(ConfigError, match=r"set checkpoint\.keep_best"):
        load_config(path)
    path.write_text("{evaluate: {checkpoint: best}, checkpoint: {keep_best: reward}}\n")
    assert load_config(path).checkpoint.best_is == "max"


def test_a_metric_that_no_method_measures_is_refused_at_the_door(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("checkpoint: {keep_best: test_acuracy}\n")
    with pytest.raises(ConfigError, match=r"keep_best.*test_acuracy.*no method.* test_accuracy, "):
        load_config(path)
    for metric in ("test_accuracy", "kl", "span_reward", "accuracy_turn_2"):
        path.write_text(f"checkpoint: {{keep_best: {metric}}}\n")
        assert load_config(path).checkpoint.keep_best == metric


@pytest.mark.parametrize(
    ("metric", "setting"),
    [
        ("accuracy_turn_3", "rltf_fm: {turns: 3}"),
        ("groups_kept", "grpo: {resample_rounds: 1}"),
        ("kl_loss", "grpo: {kl_coefficient: 0.1}"),
        ("distill_clip_fraction", "rltf_sd: {correction: cispo}"),
    ],
)
def test_what_is_measured_depends_on_settings(tmp_path, metric, setting):
    path = tmp_path / "run.yaml"
    path.write_text(f"checkpoint: {{keep_best: {metric}}}\n")
    with pytest.raises(ConfigError, match=rf"keep_best \({metric}\) is measured by no method"):
        load_config(path)
    path.write_text(f"{{checkpoint: {{keep_best: {metric}}}, {setting}}}\n")
    assert load_config(path).checkpoint.keep_best == metric


SECTIONS = [
    value
    for value in vars(schema).values()
    if isinstance(value, type) and issubclass(value, Section) and value is not Section
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_option_is_explained(section):
    source = inspect.getsource(section)
    hints = typing.get_type_hints(section)
    assert section.__doc__
    for name in section.__annotations__:
        if not (isinstance(hints[name], type) and issubclass(hints[name], Section)):
            assert re.search(rf'^    {name}: .*\n    """.+"""$', source, re.MULTILINE), name


def test_options_are_listed_with_their_values(write, capsys):
    print_options(load_config(write("sft: {steps: 123}")))
    shown = " ".join(capsys.readouterr().out.split())
    assert "--sft.steps INT Optimizer steps. 0: the pretrained" in shown
    assert "(default: 123)" in shown


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_of_the_repository_load(path):
    assert load_config(path).name == path.stem


# --- Mappings whose keys are the user's own --------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Own(Section):
    """A section with settings that only a user's code knows."""

    settings: dict[str, pydantic.JsonValue] = dataclasses.field(default_factory=dict)
    """Whatever YAML can say."""


@dataclasses.dataclass(frozen=True)
class WithOwn(Section):
    """A configuration."""

    own: Own = Own()


def test_settings_of_ones_own_may_be_of_any_shape():
    words = "--own.settings.a 1 --own.settings.columns.prompt question --own.settings.kind exact "
    words += "--own.settings.absent none --own.settings.quoted 'none'"
    weights = ["--own.settings.weights=[1, {b: null}]"]
    config = override(WithOwn(), [*words.split(), *weights])
    assert config.own.settings == {
        "a": 1,
        "columns": {"prompt": "question"},
        "kind": "exact",
        "absent": None,
        "quoted": "none",
        "weights": [1, {"b": None}],
    }
    more = override(config, ["--own.settings.columns.answer", "reply"])
    assert more.own.settings["columns"] == {"prompt": "question", "answer": "reply"}
    assert config.own.settings["columns"] == {"prompt": "question"}
    print_options(more)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--own.settings.a 1 --own.settings.a.b 2", "set the same value; leave one out"),
        ("--own.settings.a.b 1 --own.settings.a 2", "set the same value; leave one out"),
        ("--own.settings.a. 1", "unknown option `--own.settings.a.`"),
        ("--own.settings.a [1", "`--own.settings.a`, line 1: not valid YAML"),
        ("--own.settings.a 1 2", "`2` belongs to no option"),
    ],
)
def test_wrong_settings_of_ones_own(words, expected):
    with pytest.raises(ConfigError) as caught:
        override(WithOwn(), words.split())
    assert expected in str(caught.value)
    assert str(caught.value).startswith("command line: ")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"a": 1}, {"a": True}, "own.settings.a: 1 → true"),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, 'own.settings.a: {"b": 1} → {"b": 2}'),
        ({"a": {"b": 1}}, {"a.b": 1}, 'own.settings.a: {"b": 1} → nothing'),
        ({}, {"a": None}, "own.settings.a: nothing → null"),
        ({}, {"a": {}}, "own.settings.a: nothing → {}"),
    ],
)
def test_no_change_of_settings_is_overlooked(before, after, said):
    old, new = (WithOwn(Own(settings)) for settings in (before, after))
    assert said in schema.base.changes(old, new)
    assert said in differences(schema.base.values(old), schema.base.values(new))


def test_every_option_is_listed_with_its_meaning_and_value(capsys):
    config = Config(name="run")
    print_options(config)
    shown = " ".join(capsys.readouterr().out.split())
    for key, annotation in schema.base.fields_of(Config):
        if schema.base.is_section(annotation):
            assert f" {key} options: " in shown
        else:
            option = f"--{key}.NAME" if schema.base.is_mapping(annotation) else f"--{key}"
            found = re.search(rf" {re.escape(option)} (\S.*?) \(default: (.*?)\)( |$)", shown)
            assert found, option
            assert len(found[1].split()) > 2, option  # a type, and what it means
    for said in (
        "--seed INT Seed of everything random except the puzzles. (default: 0)",
        "--methods {text2grad,ppo,rltf-sd,",
        "--reward_model.class_weights FLOAT FLOAT FLOAT Weights of",
        "--annotate.temperatures FLOAT [...] Factors on",
        "--model.pretrained {None}|STR Folder",
        "--ppo.whiten {true,false} Scale advantages",
        "--text2grad.group_size INT Completions for each prompt. (default: 4)",  # inherited
    ):
        assert said in shown, said


def test_a_section_can_be_added_at_run_time(capsys):
    """As for the method of another package."""
    fields = [("mine", Own, dataclasses.field(default=Own({"a": 1})))]
    kind = dataclasses.make_dataclass("Extended", fields, bases=(WithOwn,), frozen=True)
    config = override(kind(), ["--mine.settings.b", "2", "--own.settings.c", "3"])
    assert (config.mine.settings, config.own.settings) == ({"a": 1, "b": 2}, {"c": 3})
    print_options(config)
    assert "--mine.settings.NAME VALUE" in capsys.readouterr().out


def test_settings_of_a_judge(write):
    path = write("judge: {name: a:b, settings: {model: small, stop: [a, {b: null}]}}")
    config = load_config(path, ["--judge.settings.n", "0.5", "--judge.settings.like.this=3"])
    expected = {"model": "small", "stop": ["a", {"b": None}], "n": 0.5, "like": {"this": 3}}
    assert config.judge.settings == expected
    assert load_config(write(to_yaml(config))) == config


SECRETS = ("api_key", "openai-api-key", "PASSWORD", "access_token", "client_secret", "token")


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_named_by_its_environment_variable(write, monkeypatch, name):
    said = error_of(write(f"judge: {{name: a:b, settings: {{service: [{{{name}: sk-123}}]}}}}"))
    assert f"in `judge.settings`: `service.0.{name}` would be kept in clear" in said
    assert f"${{{name.upper().replace('-', '_')}}}" in said
    assert "sk-123" not in said
    config = load_config(
        write(f"judge: {{name: a:b, settings: {{service: [{{{name}: '${{MY_KEY}}'}}]}}}}")
    )
    monkeypatch.setenv("MY_KEY", "sk-123")
    given = with_environment(config.judge.settings, "judge.settings")
    assert given == {"service": [{name: "sk-123"}]}
    assert "sk-123" not in to_yaml(config)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match=r"judge.settings.service.0.* variable MY_KEY; set it"):
        with_environment(config.judge.settings, "judge.settings")


def test_what_only_sounds_like_a_secret(write):
    text = (
        "judge: {name: a:b, settings: {max_tokens: 3, pad_token: 7, api_key: null, secretary: me}}"
    )
    assert load_config(write(text)).judge.settings["secretary"] == "me"
