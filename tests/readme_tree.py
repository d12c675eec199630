"""The README's tree, made from the files' own first lines. Run as a script, it writes it into the README."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tree -->\n```text\n", "```\n<!-- /tree -->"
TOP = ("nx46vx", "search", "trainables", "configs", "docs", "tests", ".ci")
ROOT_FILES = ("CONTRIBUTING.md", "Makefile", "constraints.txt", "pyproject.toml")
_SAID = {
    "constraints.txt": "the versions that the tests run with",
    "tests/data/metric_vectors.json": "Scores of the pairs in scoring_pairs.py by the competition's own programs",
    "pyproject.toml": "package, dependencies, settings of the tools",
    "Makefile": "make check: lint, types, import rules, tests",
}


def files() -> list[Path]:
    """Every file of the project, relative to its root, in the tree's order."""
    found = [
        path.relative_to(ROOT)
        for top in TOP
        for path in sorted((ROOT / top).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".pyc", ".orig"}
    ]
    return [*found, *(Path(name) for name in ROOT_FILES)]


def describe(path: Path) -> str:
    """What a file says of itself: the first sentence of its docstring, title or comment."""
    if str(path) in _SAID:
        return _SAID[str(path)]
    text = (ROOT / path).read_text()
    if path.suffix == ".py":
        line = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")
    else:
        line = next((row.lstrip("#! ") for row in text.splitlines() if row.startswith("# ")), "")
    return line.split(". ")[0].rstrip(".").replace("``", "")


def render() -> str:
    """The tree: a line per folder, a line per file below it."""
    lines, folder = [], None
    for path in files():
        if path.parent != folder and path.parent != Path("."):
            folder = path.parent
            lines.append(f"{folder}/")
        if path.name == "__init__.py" and not describe(path):
            continue
        name = path.name if path.parent == Path(".") else f"  {path.name}"
        lines.append(f"{name:<26} {describe(path)}"[:160].rstrip())
    return "\n".join(lines) + "\n"


def in_readme() -> str:
    """The tree as the README has it."""
    text = (ROOT / "README.md").read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


if __name__ == "__main__":
    readme = (ROOT / "README.md").read_text()
    start, stop = readme.index(BEGIN) + len(BEGIN), readme.index(END)
    (ROOT / "README.md").write_text(readme[:start] + render() + readme[stop:])
