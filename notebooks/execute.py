"""python notebooks/execute.py [NAMES]

Runs the notebooks from beginning to end and keeps what they show, so that they can be read on the
web. Needs the extra `notebooks`; all together: some minutes on two cores. To be done again when a
notebook's code, or what it shows of the library, has changed; the tests say so of the code.

What differs from one execution to the next is not kept: times and the kernel's connection file are
crossed out, progress and pages of more than 100 kB are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import re
import tempfile
from typing import Any

import nbclient
import nbformat

HERE = pathlib.Path(__file__).resolve().parent
MINE = "t2g_jax"
"""Key of a notebook's metadata: of which code its outputs are."""
LARGEST = 100_000
TEXTS = ("text/plain", "text/html")
_TIME = re.compile(r"\d[\d.]*(?=[ \u00a0\u202f](s|min|h|ms)\b)|(?<='seconds': )\d[\d.]*")
_CONNECTION = re.compile(r"(?<= -f )\S+\.json")
"""The file by which Jupyter talks to the kernel."""
_PROGRESS = re.compile(r"[\w-]+: (?P<done>\d+)/(?P<all>\d+) \(")


def main() -> None:
    names = sorted(path.stem for path in HERE.glob("*.ipynb"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"of {', '.join(names)}")
    asked = parser.parse_args().names or names
    if unknown := set(asked) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for name in asked:
        path = HERE / f"{name}.ipynb"
        print(f"{path.name} …", flush=True)
        notebook = nbformat.read(path, as_version=4)
        execute(notebook)
        nbformat.write(keep(notebook), path)


def execute(notebook: Any, folder: str | None = None, timeout: int = 3600) -> None:
    """Runs all cells with this checkout's library, in a folder or else in a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, folder, timeout)
        return
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    nbclient.NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": folder}},
        record_timing=False,
    ).execute()


def keep(notebook: Any) -> Any:
    """The notebook with those of its outputs that another execution would give, too."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [
            out for out in cell.outputs if out.get("name") != "stderr" and not _is_on_the_way(out)
        ]
        for out in cell.outputs:
            if "text" in out:
                out.text = _without_what_varies(out.text)
            data = out.get("data", {})
            if len(data.get("text/html", "")) > LARGEST:
                size = len(data.pop("text/html")) // 1000
                data["text/plain"] = f"(a page of {size} kB: run the cell)"
            for kind in filter(TEXTS.__contains__, data):
                data[kind] = _without_what_varies(data[kind])
    notebook.metadata[MINE] = {"outputs_of": code_hash(notebook)}
    return notebook


def code_hash(notebook: Any) -> str:
    """Hash of all code cells, in their order."""
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def _is_on_the_way(out: Any) -> bool:
    """Whether it tells of progress before the last step: at which ones depends on the clock."""
    found = _PROGRESS.match(out.get("data", {}).get("text/plain", ""))
    return found is not None and found["done"] != found["all"]


def _without_what_varies(text: str) -> str:
    return _CONNECTION.sub("…", _TIME.sub(_crossed_out, text))


def _crossed_out(match: re.Match[str]) -> str:
    return "…".rjust(len(match[0]))


if __name__ == "__main__":
    main()
