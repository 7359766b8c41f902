"""What no memory can hold is refused before it is made, with the keys that ask for it."""

import pytest
import tiny

from t2g_jax import cli
from t2g_jax.config import Config, load_config
from t2g_jax.errors import T2GError
from t2g_jax.phases import capacity

MOST = 2**31 - 1
CONFIG = load_config(tiny.CONFIG)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"model__width": 10**9}, "model.layers, width"),
        ({"model__mlp_width": MOST, "model__layers": 1000}, "model.layers, width"),
        ({"model__layers": MOST, "model__width": 2**14}, "model.layers, width"),
        ({"lora__rank": MOST, "model__layers": 1000}, "lora.rank"),
        ({"tokenizer__vocabulary_size": MOST}, "tokenizer.vocabulary_size"),
        ({"tokenizer__texts": MOST, "task__train_size": MOST}, "tokenizer.texts"),
        ({"text2grad__prompts_per_step": MOST // 8 * 8}, "text2grad.prompts_per_step"),
        ({"rltf_sd__group_size": MOST // 8 * 8}, "rltf_sd.prompts_per_step and group_size"),
        ({"evaluate__samples_per_prompt": MOST}, "evaluate.samples_per_prompt"),
        ({"sft__batch_size": MOST // 8 * 8}, "sft.batch_size"),
    ],
)
def test_too_large_for_any_memory(values, key):
    with pytest.raises(T2GError) as caught:
        capacity.check(tiny.with_values(CONFIG, **values))
    assert key in str(caught.value)
    assert " GiB" in str(caught.value)


def test_what_runs_is_let_through():
    capacity.check(CONFIG)
    capacity.check(Config(name="default"))


def test_the_memory_of_a_container_counts():
    assert 2**28 < capacity.host_bytes() <= capacity.device_bytes()


def test_a_command_says_so_before_it_makes_anything(tmp_path, capsys):
    words = ["sft", str(tiny.CONFIG), "--workdir", str(tmp_path / "run")]
    assert cli.main([*words, "--model.width", "1000000000"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("t2g: model.layers, width")
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "tokenizer").exists()
