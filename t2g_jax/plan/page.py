"""`python -m t2g_jax.plan.page docs/plans.md`: the plans of configs/plans/ put into a page.

A config is planned for the topology that its name ends with. Tables are written between the page's
markers, each as soon as it is done; those of configs that are not named stay, and so does the text
around them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import rich.console

from t2g_jax.config import load_config
from t2g_jax.errors import T2GError
from t2g_jax.plan import command, table
from t2g_jax.plan.topologies import topology
from t2g_jax.printing import tell

MARKERS = ("<!-- plans: begin -->", "<!-- plans: end -->")


def main(arguments: Sequence[str] | None = None) -> int:
    """Plans the configs, one after the other, and puts each into the page."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments:
        tell("usage: python -m t2g_jax.plan.page PAGE [CONFIG ...]")
        return 2
    page, *configs = map(Path, arguments)
    try:
        for config in configs or sorted(Path("configs/plans").glob("*.yaml")):
            put(page, config.stem, section(config))
    except T2GError as error:
        tell("t2g: " + str(error).replace("\n", "\n     "))
        return 2
    return 0


def put(page: Path, name: str, section: str) -> None:
    """Replaces the section of that name, or adds it; sections are in the order of their names.

    Raises:
      T2GError: the page has no markers.
    """
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(MARKERS[0])
    inside, closed, after = rest.partition(MARKERS[1])
    if not found or not closed:
        raise T2GError(f"{page} needs lines {MARKERS[0]} and {MARKERS[1]} for the tables")
    sections = {part.split()[1]: part.strip() for part in re.split(r"(?m)^(?=### )", inside)[1:]}
    sections[name] = section
    parts = [before + MARKERS[0], *(sections[key] for key in sorted(sections)), MARKERS[1] + after]
    page.write_text("\n\n".join(parts), encoding="utf-8")


def section(path: Path) -> str:
    """A heading, what the config says of itself, and its table."""
    ending = re.search(r"[a-z0-9]+-\d+$", path.stem)
    if ending is None:
        raise T2GError(f"{path}: a plan is named after its topology, as in rltf-8b-v5e-16.yaml")
    config = load_config(path)
    console = rich.console.Console(stderr=True, highlight=False, width=220)
    needs = command.run(config, ending[0], console=console)
    comment = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    where = topology(ending[0])
    about = f"`t2g plan {path} --topology {where.name}`: {where.chips} chips."
    return "\n\n".join([f"### {path.stem}", " ".join(comment), about, table.as_markdown(needs)])


if __name__ == "__main__":
    raise SystemExit(main())
