"""The notebooks run from beginning to end, the long one on tiny settings."""

import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

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


EXECUTE = runpy.run_path(str(NOTEBOOKS / "execute.py"), run_name="execute")
AGAIN = "python notebooks/execute.py makes them"


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_outputs_are_there_and_belong_to_the_code(path):
    """They are what somebody reads who does not run it; a kernel that every machine has."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    made_of = notebook["metadata"].get(EXECUTE["MINE"], {}).get("outputs_of")
    assert made_of == EXECUTE["code_hash"](notebook), f"other outputs than the code's; {AGAIN}"
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)], AGAIN
    said = [cell for cell in code if re.search(r"^(print|plt\.show|heat_map|HTML|curves)\(",
            "".join(cell["source"]), re.M)]  # fmt: skip
    assert said
    assert [cell["id"] for cell in said if not cell["outputs"]] == []
    for output in (output for cell in code for output in cell["outputs"]):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
        assert len(json.dumps(output)) < 2 * EXECUTE["LARGEST"]
    text = json.dumps(notebook)
    assert str(NOTEBOOKS.parent) not in text
    assert "/tmp/" not in text


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
@pytest.mark.parametrize(("folder", "source"), [("notebooks", "../.[notebooks]"),
                                                ("content", "t2g_jax[notebooks]")])  # fmt: skip
def test_the_first_cell_installs_from_a_clone_or_from_the_index(path, folder, source, tmp_path):
    cells = nbformat.read(path, as_version=4).cells
    first = next(cell.source for cell in cells if cell.cell_type == "code")
    assert re.search(r"^SOURCE = ", first, re.M)
    here = tmp_path / folder
    here.mkdir()
    if folder == "notebooks":
        (tmp_path / "pyproject.toml").touch()
    script = f"{first.replace('%pip install --quiet', 'print')}\nprint(SOURCE)"
    script = script.replace('print "{SOURCE}"', "pass")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=here, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{source}\n"


def test_what_differs_from_one_execution_to_the_next_is_not_kept():
    stream = nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell("work()")
    cell.outputs = [
        stream("stream", name="stderr", text="step 3 of 5"),
        stream(
            "stream", name="stdout", text="{'seconds': 12.75, 'n': 3}\n1 h 02 min, 4.5\u202fs\n"
        ),
        stream("display_data", data={"text/html": "x" * 200_000, "text/plain": "<HTML>"}),
        *(
            stream("display_data", data={"text/html": f"<pre>{line}</pre>", "text/plain": line})
            for line in (
                "sft: 0/3 (0.0 %)  compiling …",
                "sft: 2/3 (66.7 %)  loss 1.0  7.5 s left",
                "sft: 3/3 (100.0 %)  loss 0.5  0.0 s left",
                "sft: done at step 3 after 1 min 04 s",
            )
        ),
    ]
    kept = EXECUTE["keep"](nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert [out.get("text") for out in kept] == [
        "{'seconds':     …, 'n': 3}\n… h  … min,   …\u202fs\n",
        *(None, None, None),
    ]
    assert [out.data["text/plain"] for out in kept[2:]] == [
        "sft: 3/3 (100.0 %)  loss 0.5    … s left",
        "sft: done at step 3 after … min  … s",
    ]
    assert kept[3].data["text/html"] == "<pre>sft: done at step 3 after … min  … s</pre>"
    assert kept[1].data == {"text/plain": "(a page of 200 kB: run the cell)"}


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch, one_device):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", one_device)
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
