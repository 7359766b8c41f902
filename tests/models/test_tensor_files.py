"""Files of tensors: what tells one model's weights from another's, and what is in them."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from t2g_jax.errors import T2GError
from t2g_jax.models import tensor_files
from t2g_jax.models.tensor_files import fingerprint


@pytest.fixture
def weights(rng):
    return {f"layer.{i}.weight": rng.normal(size=(200, 30)).astype("float32") for i in range(4)}


def folder_of(path, weights, name="model.safetensors"):
    path.mkdir()
    save_file(weights, path / name)
    return path


def test_a_fingerprint_is_of_the_weights_alone(weights, tmp_path):
    """Not of how they are split into files, nor of anything beside them."""
    one = folder_of(tmp_path / "one", weights)
    (tmp_path / "several").mkdir()
    contents = [(name, value.shape) for name, value in reversed(weights.items())]
    values = (weights[name] for name, _ in contents)
    kind = np.dtype(np.float32)
    tensor_files.write(tmp_path / "several", contents, values, kind, file_bytes=30_000)
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 1
    (one / "config.json").write_text("{}")
    assert fingerprint(one) == fingerprint(tmp_path / "several")
    assert len(fingerprint(one)) == 16


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w | {"layer.3.weight": w["layer.3.weight"] * np.float32(1.001)},
        lambda w: {name: value.astype(ml_dtypes.bfloat16) for name, value in w.items()},
        lambda w: w | {"layer.2.weight": w["layer.2.weight"].reshape(30, 200)},
        lambda w: (
            w | {"layer.1.weight": w["layer.2.weight"], "layer.2.weight": w["layer.1.weight"]}
        ),
        lambda w: w | {"more": np.zeros(3, np.float32)},
        lambda w: dict(list(w.items())[1:]),
    ],
    ids=["trained", "type", "shape", "swapped", "more", "fewer"],
)
def test_other_weights_have_another_fingerprint(weights, tmp_path, change):
    before = folder_of(tmp_path / "before", weights)
    after = folder_of(tmp_path / "after", change(weights))
    assert fingerprint(before) != fingerprint(after)


def test_adapters_have_a_fingerprint_too(weights, tmp_path):
    one = folder_of(tmp_path / "one", weights, tensor_files.ADAPTERS)
    two = folder_of(tmp_path / "two", {n: 2 * w for n, w in weights.items()}, tensor_files.ADAPTERS)
    assert fingerprint(one) != fingerprint(two)
    with pytest.raises(T2GError, match="has neither"):
        fingerprint(tmp_path)


def test_what_is_read_for_a_fingerprint_is_bounded(tmp_path, monkeypatch):
    """Of many tensors one place each, however large they are."""
    monkeypatch.setattr(tensor_files, "_PLACES", 40)
    many = {f"{i:02}": np.full((1000,), i, np.float32) for i in range(30)}
    folder = folder_of(tmp_path / "many", many)
    read = []
    whole = tensor_files.os.pread
    monkeypatch.setattr(tensor_files.os, "pread", lambda *a: read.append(a[1]) or whole(*a))
    fingerprint(folder)
    assert read == [256] * 30
