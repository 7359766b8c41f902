"""The picture in docs/architecture.md, and the rule behind it: imports run down, and in no circle.

    python docs/architecture.py            # writes docs/architecture.svg
    python docs/architecture.py --check    # only says what breaks the rule

A room is a folder or a module of `t2g_jax`. `FLOORS` says where each is; a room imports from its
own floor only what stands to its left, and from the floors below. The package itself, `import
t2g_jax`, is a front door for those outside: it leads to the pure functions, and nothing inside goes
through it. What is imported is read from the code, whether at the top of a module or in a function.
"""

from __future__ import annotations

import ast
import html
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"

FLOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "words and numbers",
        ("version", "errors", "numerics", "deprecation", "printing", "installation"),
    ),
    (
        "pure functions of arrays",
        (
            *("reductions", "kl", "divergences", "chunked", "chunked_distillation", "logprobs"),
            *("losses", "advantages", "spans"),
        ),
    ),
    (
        "one process",
        (*("runtime", "user_code", "plugins", "config", "factories"),),
    ),
    ("components", ("parallel", "models", "sampling", "data", "tasks", "judges", "training")),
    ("a run", ("report", "run", "rollouts", "feedback", "methods")),
    ("entry points", ("phases", "plan", "study", "commands", "cli", "__main__")),
)
FRONT_DOOR = "pure functions of arrays"  # the highest floor that `import t2g_jax` leads to

Modules = Mapping[str, Path]
Imports = Mapping[str, frozenset[str]]


def modules(package: Path = ROOT / "t2g_jax") -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(known: Modules) -> dict[str, frozenset[str]]:
    """Which modules of the package each of them imports."""
    return {name: frozenset(_imported(name, path, known)) - {name} for name, path in known.items()}


def _imported(name: str, path: Path, known: Modules) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            source = _source(node, name, path)
            inner = (f"{source}.{alias.name}" for alias in node.names)
            yield from (one if one in known else source for one in inner if source in known)


def _source(node: ast.ImportFrom, name: str, path: Path) -> str:
    """The absolute name of what a `from … import` in a module reads."""
    if not node.level:
        return str(node.module)
    up = node.level - (path.name == "__init__.py")  # one dot is the package that the module lies in
    around = name.split(".")[: -up or None]
    return ".".join([*around, *([node.module] if node.module else [])])


def room(module: str) -> str:
    """The room of a module; the package itself, which is the front door, has none: ""."""
    return module.partition(".")[2].partition(".")[0]


def broken(
    found: Imports,
    floors: tuple[tuple[str, tuple[str, ...]], ...] = FLOORS,
    front_door: str = FRONT_DOOR,
) -> list[str]:
    """What breaks the rule, a line for each; nothing if all is well."""
    order = [name for _, rooms in floors for name in rooms]
    titles = [title for title, _ in floors]
    behind = {name for _, rooms in floors[: titles.index(front_door) + 1] for name in rooms}
    rooms = {room(name) for name in found} - {""}
    lines = [f"{name} has no floor" for name in sorted(rooms - set(order))]
    lines += [f"{name} is on a floor, but not there" for name in order if name not in rooms]
    for module, others in sorted(found.items()):
        for other in sorted(others):
            mine, theirs = room(module), room(other)
            if not theirs:
                lines.append(f"{module} imports {other}: the front door, from inside")
            elif not mine and theirs in order and theirs not in behind:
                lines.append(f"{module} imports {other}: above the front door")
            elif mine in order and theirs in order and order.index(mine) < order.index(theirs):
                lines.append(f"{module} imports {other}: up")
    return lines + [f"{' → '.join(circle)}: a circle" for circle in circles(found)]


def circles(found: Imports) -> list[list[str]]:
    """A circle through each group of modules that import one another.

    Whoever imports a module imports the packages that it lies in, too, save those that they lie in
    themselves: these are being imported already, and their names are asked for only by those who
    say so. The front door has a rule of its own.
    """
    graph = {
        name: sorted(
            {part for other in others for part in (other, *_beyond(other, name)) if room(part)}
        )
        for name, others in found.items()
    }
    done: set[str] = set()
    lines = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            lines.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in graph[name]:
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return lines


def _beyond(module: str, seen_from: str) -> Iterator[str]:
    """The packages that a module lies in and another one does not."""
    while module := module.rpartition(".")[0]:
        if not f"{seen_from}.".startswith(f"{module}."):
            yield module


# --- The picture -----------------------------------------------------------------------------

WIDTH, BAND, BOX, MARGIN = 1340, 96, 34, 170


def draw(found: Imports) -> str:
    """The rooms on their floors, and a line down to each room that one imports and that no other
    room which it imports brings along."""
    needs = {name: set[str]() for _, rooms in FLOORS for name in rooms}
    for module, others in found.items():
        for other in others:
            if room(module) and room(other) and room(module) != room(other):
                needs[room(module)].add(room(other))
    beyond = {name: set().union(*(_reach(other, needs) for other in needs[name])) for name in needs}
    height = BAND * len(FLOORS) + 20
    where = {}
    boxes = []
    for level, (title, rooms) in enumerate(FLOORS):
        top = height - BAND * (level + 1)
        boxes.append(f'<text x="10" y="{top + 27}" class="floor">{html.escape(title)}</text>')
        step = (WIDTH - MARGIN) / len(rooms)
        for i, name in enumerate(rooms):
            x = MARGIN + step * i
            where[name] = (x + (step - 10) / 2, top)
            boxes.append(
                f'<rect x="{x:.0f}" y="{top}" width="{step - 10:.0f}" height="{BOX}" rx="5"/>'
                f'<text x="{x + (step - 10) / 2:.0f}" y="{top + 21}">{html.escape(name)}</text>'
            )
    arrows = []
    for name in needs:
        for other in sorted(needs[name] - beyond[name]):
            (x, y), (u, v) = where[name], where[other]
            if y == v:
                middle = f"Q{(x + u) / 2:.0f} {y + BOX + 28}"
                arrows.append(f'<path d="M{x:.0f} {y + BOX} {middle} {u:.0f} {v + BOX}"/>')
            else:
                arrows.append(f'<path d="M{x:.0f} {y + BOX} L{u:.0f} {v}"/>')
    style = (
        "svg{background:#fff}rect{fill:#eef2f7;stroke:#5b6b7f}path{fill:none;stroke:#9aa7b5}"
        "text{font:12px sans-serif;text-anchor:middle;fill:#1d2733}"
        ".floor{text-anchor:start;fill:#5b6b7f}"
    )
    inside = "\n".join([f"<style>{style}</style>", *arrows, *boxes])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}">\n{inside}\n</svg>\n'
    )


def _reach(name: str, needs: Mapping[str, set[str]]) -> set[str]:
    return needs[name].union(*(_reach(other, needs) for other in needs[name]))


def main(words: list[str]) -> int:
    known = modules()
    found = imports(known)
    lines = broken(found)
    if "--check" not in words and not lines:
        PICTURE.write_text(draw(found), "utf-8")
    print("\n".join(lines) or "imports run down, and in no circle")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
