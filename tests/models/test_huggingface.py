"""Folders that are damaged or not what they say; shardings, types and memory of what is read."""

import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hf_models import make
from jax.sharding import NamedSharding

from t2g_jax.config import MeshConfig
from t2g_jax.errors import T2GError
from t2g_jax.models import families, heads, huggingface, tensor_files
from t2g_jax.training.sharding import make_mesh, state_shardings

pytest.importorskip("torch", reason="pip install torch, which saves the models")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    make("llama3", folder, dtype="bfloat16")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy, to be damaged, in several files."""
    for file in original.iterdir():
        if not file.name.endswith(".safetensors"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    _, config = families.describe(original)
    family, _ = families.describe(original)
    params = huggingface.load(original, config)
    huggingface.save_weights(
        tmp_path, params, config, family, dtype=jnp.bfloat16, file_bytes=20_000
    )
    return tmp_path


def load(folder, **changes):
    _, config = families.describe(folder)
    return huggingface.load(folder, dataclasses.replace(config, **changes))


def test_several_files_are_one_model_bit_for_bit(original, folder):
    assert len(list(folder.glob("*.safetensors"))) > 1
    for a, b in zip(jax.tree.leaves(load(original)), jax.tree.leaves(load(folder)), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


def test_parameters_may_stay_in_bfloat16(original):
    exact, half = load(original), load(original, param_dtype=jnp.bfloat16)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(half), strict=True):
        assert b.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b.astype(jnp.float32))


@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_read_straight_to_a_mesh(original, shape):
    mesh = make_mesh(MeshConfig(**({"data": 1} | shape)))
    _, config = families.describe(original)
    shapes = jax.eval_shape(lambda: heads.init_params(config, jax.random.key(0)))
    shardings = state_shardings(shapes, mesh)
    there = huggingface.load(original, config, shardings)
    for sharding, a, b in zip(
        jax.tree.leaves(shardings, is_leaf=lambda x: isinstance(x, NamedSharding)),
        jax.tree.leaves(there),
        jax.tree.leaves(load(original)),
        strict=True,
    ):
        assert a.sharding.is_equivalent_to(sharding, a.ndim)
        np.testing.assert_array_equal(a, b)


def test_a_device_reads_its_own_rows_only(original, monkeypatch):
    """Of the embeddings, a device of eight reads an eighth."""
    read = []
    whole = tensor_files.Tensor.read

    def counted(self, index=()):
        value = whole(self, index)
        read.append((self.name, value.nbytes, self.bytes))
        return value

    monkeypatch.setattr(tensor_files.Tensor, "read", counted)
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    _, config = families.describe(original)
    shapes = jax.eval_shape(lambda: heads.init_params(config, jax.random.key(0)))
    huggingface.load(original, config, state_shardings(shapes, mesh))
    parts = [size / total for name, size, total in read if name == "model.embed_tokens.weight"]
    assert parts == [1 / 8] * 8


def edit_header(file, change):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def the_file(folder, name):
    index = json.loads((folder / tensor_files.INDEX).read_text())
    return folder / index["weight_map"][name]


NORM = "model.layers.1.input_layernorm.weight"


def test_a_truncated_file_is_named(folder):
    file = the_file(folder, NORM)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(T2GError, match=rf"{file.name} is truncated or damaged.*fetch it again"):
        load(folder)


def test_a_missing_file_is_named(folder):
    file = the_file(folder, NORM)
    file.unlink()
    with pytest.raises(T2GError, match=rf"{file.name} is missing"):
        load(folder)


def test_a_tensor_that_the_index_promises(folder):
    index = json.loads((folder / tensor_files.INDEX).read_text())
    others = set(index["weight_map"].values()) - {the_file(folder, NORM).name}
    index["weight_map"][NORM] = min(others)
    (folder / tensor_files.INDEX).write_text(json.dumps(index))
    with pytest.raises(T2GError, match=rf"{NORM} is in {min(others)}, which does not have it"):
        load(folder)


def test_a_tensor_that_two_files_have_is_that_of_the_index(folder):
    wanted, *_, other = sorted(folder.glob("*.safetensors"))
    name, value = next(iter(safetensors.numpy.load_file(wanted).items()))
    before = load(folder)
    stored = safetensors.numpy.load_file(other)
    safetensors.numpy.save_file(stored | {name: np.zeros_like(value)}, other)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(load(folder)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_file_stands_before_an_index_that_was_left(original, folder):
    (folder / "model.safetensors").write_bytes((original / "model.safetensors").read_bytes())
    next(folder.glob("model-*.safetensors")).unlink()
    for a, b in zip(jax.tree.leaves(load(original)), jax.tree.leaves(load(folder)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_missing_tensor_is_named_with_its_shape(folder):
    index = json.loads((folder / tensor_files.INDEX).read_text())
    file = the_file(folder, NORM)
    edit_header(file, lambda header: header.update(other=header.pop(NORM)))
    index["weight_map"]["other"] = index["weight_map"].pop(NORM)
    (folder / tensor_files.INDEX).write_text(json.dumps(index))
    with pytest.raises(
        T2GError,
        match=rf"{NORM}: expected \[32\], found nothing; other: expected nothing, found \[32\]",
    ):
        load(folder)


def test_another_shape_is_named(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(T2GError, match=r"mlp\.gate_proj\.weight: expected \[40, 32\], found \[48,"):
        load(folder)


def test_quantised_weights_are_refused(folder):
    def quantise(header):
        header[NORM] |= {"dtype": "I16"}

    edit_header(the_file(folder, NORM), quantise)
    with pytest.raises(T2GError, match=rf"{NORM} is of type I16; quantised weights"):
        load(folder)


def test_pickled_weights_are_never_read(folder):
    for file in [*folder.glob("*.safetensors"), folder / tensor_files.INDEX]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(T2GError, match=r"pytorch_model\.bin may run any code when read"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "gpt2"},
            "model_type is 'gpt2'; the decoder can be .*llama.*adding_a_model",
        ),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'silu' can be computed"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
        ({"num_key_value_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
        ({"num_attention_heads": -4}, "heads is -4; must be a whole number"),
        ({"hidden_size": "32"}, "'hidden_size'.*expected int"),
        ({"sliding_window": "4"}, "window is '4'; must be a whole number"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
            "config.json.*NoneType",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["chunked_attention"] * 3, "sliding_window": 4}
            | {"use_sliding_window": True},
            "layer_types has chunked_attention",
        ),
        ("{", "cannot be used"),
        (None, "has no config.json"),
    ],
)
def test_what_the_decoder_cannot_be_is_named(folder, change, message):
    file = folder / "config.json"
    if change is None:
        file.unlink()
    elif isinstance(change, str):
        file.write_text(change)
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(T2GError, match=message):
        families.describe(folder)


def test_a_folder_of_adapters_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(T2GError, match=r"these are adapters: name them as lora\.pretrained"):
        families.describe(tmp_path)


@pytest.mark.parametrize("value", [None, False])
def test_what_is_required_to_be_off_may_be_null_or_false(tmp_path, value):
    make("gemma2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"use_bidirectional_attention": value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert families.read_config(tmp_path).window == 6


def test_an_lm_head_beside_tied_embeddings_must_be_them(original, tmp_path):
    """Some readers would tie it, others not."""
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "model.safetensors"
    stored = safetensors.numpy.load_file(file)
    head = stored["model.embed_tokens.weight"].copy()
    safetensors.numpy.save_file(stored | {"lm_head.weight": head}, file)
    for a, b in zip(jax.tree.leaves(load(original)), jax.tree.leaves(load(tmp_path)), strict=True):
        np.testing.assert_array_equal(a, b)
    head[-1, -1] += 1
    safetensors.numpy.save_file(stored | {"lm_head.weight": head}, file)
    with pytest.raises(T2GError, match=r"tie_word_embeddings is true, but lm_head\.weight is not"):
        load(tmp_path)


def test_neither_folder_nor_model_of_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(T2GError, match=r"'nobody/nothing': there is no such folder"):
        huggingface.fetch("nobody/nothing")


def test_a_model_that_sees_is_read_as_its_language_model(tmp_path):
    """Tensors of Gemma 3 with a vision tower have other prefixes; those of the tower are left."""
    make("gemma3", tmp_path)
    plain = load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    file = tmp_path / "model.safetensors"

    def rename(header):
        for name in [name for name in header if name != "__metadata__"]:
            header[name.replace("model.", "language_model.model.", 1)] = header.pop(name)

    edit_header(file, rename)
    both = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(both | {"text_config": config}))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(load(tmp_path)), strict=True):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------ the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as fetching a model takes."""

    folder: pathlib.Path
    asked: list[str]
    commit = "0" * 40

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, *, body):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/me/model/tree/"):
            files = [
                {
                    "type": "file",
                    "path": file.name,
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                }
                for file in sorted(self.folder.iterdir())
            ]
            self.send(json.dumps(files).encode(), body)
        elif path.startswith("/api/models/me/model"):
            names = [{"rfilename": file.name} for file in sorted(self.folder.iterdir())]
            about = {"id": "me/model", "sha": self.commit, "siblings": names}
            self.send(json.dumps(about).encode(), body)
        elif path.startswith("/me/model/resolve/"):
            file = self.folder / path.rsplit("/", 1)[1]
            if body:
                self.asked.append(file.name)
            self.send(file.read_bytes(), body)
        else:
            self.send_error(404)

    def send(self, data, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


FETCH = """
from t2g_jax.models import families, huggingface
folder = huggingface.fetch("me/model")
print(len(list(folder.iterdir())), sum(x.size for x in __import__("jax").tree.leaves(
    huggingface.load(folder, families.read_config(folder)))))
"""


def test_a_model_of_the_hub(folder, tmp_path_factory):
    """Fetched by its id, but for what could run code; the second time it is there."""
    wanted = sorted(file.name for file in folder.iterdir())
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "consolidated.safetensors").write_bytes(b"the same once more")
    handler = type("Handler", (Hub,), {"folder": folder, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        outputs = [
            subprocess.run(
                [sys.executable, "-c", FETCH],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
            for _ in range(2)
        ]
        server.shutdown()
    assert sorted(handler.asked) == wanted
    total = sum(leaf.size for leaf in jax.tree.leaves(load(folder)))
    assert outputs == [f"{len(wanted)} {total}\n"] * 2
