"""The notebooks run from beginning to end, the long one on tiny settings."""

import json
import os
import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"
TINY = {
    "quickstart": """
settings = [
    *("--task.train_size", "64", "--task.test_size", "8", "--tokenizer.texts", "64"),
    *("--model.layers", "1", "--model.width", "32", "--model.mlp_width", "64"),
    *("--sft.examples", "64", "--sft.steps", "2", "--sft.batch_size", "8"),
    *("--annotate.prompts", "8", "--annotate.batch_size", "8", "--annotate.held_out", "0.25"),
    *("--reward_model.epochs", "1", "--reward_model.batch_size", "4"),
    *("--text2grad.span_source", "reward_model"),
    *("--text2grad.steps", "2", "--text2grad.prompts_per_step", "2"),
    *("--text2grad.minibatches", "1"),
    *("--rltf_sd.steps", "2", "--rltf_sd.prompts_per_step", "2", "--rltf_sd.group_size", "2"),
    *("--evaluate.samples_per_prompt", "1", "--sampling.max_new_tokens", "16"),
]
workdir = "run"
""",
}


def paths():
    return sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_notebook_is_clean(path):
    """No outputs, so that a diff shows what a person wrote; a kernel that every machine has."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]]
    assert "find_spec" in "".join(code[0]["source"]), "the first code cell installs t2g_jax"


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # One device, as in a notebook, and quick compilation.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOKS.parent)]))
    notebook = nbformat.read(path, as_version=4)
    parameters = [
        index
        for index, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", [])
    ]
    assert len(parameters) == (path.stem in TINY)
    for index in parameters:
        notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(TINY[path.stem]))
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
