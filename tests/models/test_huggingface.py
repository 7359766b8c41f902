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

from t2g_jax.config import Config, MeshConfig
from t2g_jax.errors import T2GError
from t2g_jax.models import families, heads, huggingface, tensor_files
from t2g_jax.parallel.sharding import make_mesh, state_shardings
from t2g_jax.run import pretrained

pytest.importorskip("torch", reason="pip install torch, which saves the models")
transformers = pytest.importorskip("transformers")


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


def test_quantized_weights_are_refused(folder):
    def quantize(header):
        header[NORM] |= {"dtype": "I16"}

    edit_header(the_file(folder, NORM), quantize)
    with pytest.raises(T2GError, match=rf"{NORM} is of type I16; quantized weights"):
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
        ({"model_type": None}, "model_type is None; the decoder can be"),
        ({"model_type": "of_tomorrow"}, "model_type is 'of_tomorrow'; the decoder can be"),
        (
            {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}},
            "model_type is 'evil'; the decoder can be",
        ),
        ({"num_attention_heads": -4}, "num_attention_heads is -4; must be a whole number"),
        ({"hidden_size": 0}, "hidden_size is 0; must be a whole number"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0; must be a whole number"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06; must not be below 0"),
        ({"model_type": "qwen3_moe", "num_experts": 0}, "num_experts is 0; must be a whole"),
        (
            {"model_type": "gemma2", "hidden_act": None, "query_pre_attn_scalar": -8},
            "query_pre_attn_scalar is -8; must be a number above 0",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}},
            "config.json: rope_parameters: rope_theta is 1.0; must be above 1",
        ),
        ({"hidden_size": "32"}, "'hidden_size'.*expected int"),
        ({"model_type": "mistral", "sliding_window": "4"}, "'sliding_window'.*expected.*int"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": None}},
            "config.json: rope_parameters: rope_theta is None; must be a number",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["chunked_attention"] * 3, "sliding_window": 4}
            | {"use_sliding_window": True},
            "layer_types has chunked_attention",
        ),
        ("{", "config.json is damaged"),
        (None, "has weights, but no config.json; fetch it"),
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


def copied(original, to, change):
    """A copy of a folder whose tensors are changed."""
    for file in original.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    file = to / "model.safetensors"
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(file)), file)
    return to


def same(a, b):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_tied_weights_that_are_stored_as_the_lm_head(original, tmp_path):
    """As `transformers` reads them."""
    folder = copied(original, tmp_path, lambda w: w | {HEAD: w.pop(EMBED)})
    same(load(original), load(folder))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    np.testing.assert_array_equal(
        theirs.get_input_embeddings().weight.detach().float().numpy(),
        load(folder)["decoder"]["embed"]["embedding"],
    )


def test_a_decoder_that_was_saved_without_its_lm_head(original, tmp_path):
    def change(weights):
        return {name.removeprefix("model."): value for name, value in weights.items()}

    same(load(original), load(copied(original, tmp_path, change)))


def test_an_lm_head_that_is_not_there(original, tmp_path):
    folder = copied(original, tmp_path, lambda w: w)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(T2GError, match=r"lm_head.*nothing; if its LM head is its embeddings, set"):
        load(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [NORM, EMBED, "model.layers.2.mlp.down_proj.weight"])
def test_weights_that_are_not_finite_are_named(original, tmp_path, name, value):
    def change(weights):
        weights[name].reshape(-1)[-1] = value
        return weights

    folder = copied(original, tmp_path, change)
    with pytest.raises(T2GError, match=rf"{name} has NaN or infinity in it \(stored as bfloat16"):
        load(folder)
    _, config = families.describe(folder)
    huggingface.check(folder, config, values=False)
    with pytest.raises(T2GError, match=rf"{name} has NaN or infinity in it"):
        huggingface.check(folder, config, values=True)


def test_weights_that_are_finite_only_in_a_larger_type(original, tmp_path):
    def change(weights):
        weights = {key: value.astype(np.float64) for key, value in weights.items()}
        weights[NORM][0] = 1e300
        return weights

    folder = copied(original, tmp_path, change)
    with pytest.raises(T2GError, match=rf"{NORM} has .*stored as float64, read as float32"):
        huggingface.check(folder, families.read_config(folder), values=True)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("BF16/model-00001-of-00002.gguf", r"BF16/model-00001-of-00002\.gguf is GGUF"),
        ("original/params.json", r"original/params\.json is Mistral's or Meta's own format"),
        ("model-Q4_K_M.gguf", r"model-Q4_K_M\.gguf is GGUF.*llama\.cpp.*in safetensors"),
        ("pytorch_model-00001-of-00002.bin", "may run any code when read, and is not"),
        ("consolidated.00.pth", "may run any code"),
        ("consolidated.safetensors", "Mistral's or Meta's own format"),
        ("tf_model.h5", "of TensorFlow"),
        ("flax_model.msgpack", "of Flax"),
        ("onnx/model.onnx", "onnx/model.onnx is ONNX"),
        ("openvino_model.xml", "OpenVINO"),
        ("weights.npz", "of MLX"),
        ("model.bf16.safetensors", r"model\.bf16\.safetensors is a variant.*rename it"),
    ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_folders_of_other_formats_say_what_they_are(original, tmp_path, file, said, with_config):
    if with_config:
        (tmp_path / "config.json").write_bytes((original / "config.json").read_bytes())
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"weights")
    missing = "neither model.safetensors" if with_config else "no config.json"
    with pytest.raises(T2GError, match=rf"has {missing}.*{said}"):
        huggingface.load(tmp_path, families.read_config(tmp_path))


@pytest.mark.parametrize("name", [tensor_files.WHOLE, tensor_files.INDEX])
def test_weights_that_are_no_file_say_so(original, tmp_path, name):
    """As a cache leaves them whose blobs were deleted."""
    (tmp_path / "config.json").write_bytes((original / "config.json").read_bytes())
    (tmp_path / name).symlink_to(tmp_path / "blobs/gone")
    with pytest.raises(T2GError, match=rf"{name} is a link to a file that is not there; fetch"):
        huggingface.load(tmp_path, families.read_config(tmp_path))
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(T2GError, match=rf"{name} is a folder; fetch"):
        huggingface.load(tmp_path, families.read_config(tmp_path))


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(T2GError, match=r"model\.gguf', a file; name the folder"):
        huggingface.fetch(str(file))


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
    commits = ("0" * 40, "1" * 40)  # the newest last

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
            about = {"id": "me/model", "sha": self.commit(path), "siblings": names}
            self.send(json.dumps(about).encode(), body)
        elif path.startswith("/me/model/resolve/"):
            file = self.folder / path.rsplit("/", 1)[1]
            if body:
                self.asked.append(file.name)
            self.send(file.read_bytes(), body)
        else:
            self.send_error(404)

    def commit(self, path):
        return next((commit for commit in self.commits if commit in path), self.commits[-1])

    def send(self, data, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit(self.path))
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


PINNED = """
import pathlib, sys
from t2g_jax.config import Config, ModelConfig
from t2g_jax.models import huggingface
from t2g_jax.run import pretrained
config = Config(name="run", model=ModelConfig(pretrained="me/model"))
began = pathlib.Path(sys.argv[1])
pretrained.pin(config, began)
print(huggingface.fetch("me/model").name)
pretrained.pin(config, began.with_name("new"), record=True)
print(huggingface.revision("me/model"), (began.with_name("new") / "revisions.json").read_text())
"""


def test_a_run_goes_on_with_the_revision_that_it_began_with(folder, tmp_path_factory):
    """Though the model of that id has another one by now."""
    handler = type("Handler", (Hub,), {"folder": folder, "asked": []})
    runs = tmp_path_factory.mktemp("runs")
    for name in ("began", "new"):
        (runs / name).mkdir()
    old, newest = Hub.commits
    (runs / "began/revisions.json").write_text(json.dumps({"me/model": old}))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, commit in (("began", old), ("other", newest)):
            output = subprocess.run(
                [sys.executable, "-c", PINNED, str(runs / name)],
                env=_hub(server, tmp_path_factory.mktemp("home")),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
            assert output.split()[:2] == [commit, commit]
            assert json.loads((runs / "new/revisions.json").read_text()) == {"me/model": commit}
            (runs / "new/revisions.json").unlink()
        server.shutdown()


def test_a_damaged_record_of_revisions_is_named(tmp_path):
    for text in ("{", "[]", '{"me/model": 3}'):
        (tmp_path / pretrained.REVISIONS).write_text(text)
        with pytest.raises(T2GError, match=r"revisions\.json is damaged"):
            pretrained.pin(Config(name="run"), tmp_path)


def _hub(server, home):
    return os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


def test_a_model_of_the_hub(folder, tmp_path_factory):
    """Fetched by its id, but for what could run code; the second time it is there."""
    wanted = sorted(file.name for file in folder.iterdir())
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "consolidated.safetensors").write_bytes(b"the same once more")
    handler = type("Handler", (Hub,), {"folder": folder, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = _hub(server, tmp_path_factory.mktemp("home"))
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
