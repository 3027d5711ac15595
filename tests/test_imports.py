"""Imports of rwkv_lab and analysis: no circle, no arrow back, no torch where it is not needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGES = ("rwkv_lab", "analysis")
# What analysis may use of rwkv_lab: schedules, runs, the registry and schema, what a stop rule sees, small tools.
SHARED = (
    "rwkv_lab.config",
    "rwkv_lab.inference.copying",
    "rwkv_lab.runs",
    "rwkv_lab.sweeps.stopping.curves",
    "rwkv_lab.tracking",
    "rwkv_lab.training.schedules",
    "rwkv_lab.util",
    "rwkv_lab.cli.arguments",
)
ORDER = ("cli", "compare", "plots", "fit", "laws", "curves")  # a room imports only later ones; schedules lies between


def name_of(file: Path, repository: Path) -> str:
    parts = file.relative_to(repository).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below ``tree``, but for what is imported for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from statements(node)


def imported(file: Path, modules: set[str]) -> set[str]:
    """Return those of ``modules`` that ``file`` imports, inside its functions as well."""
    found = set()
    for node in statements(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= below & modules or {node.module}
    return found & modules


@pytest.fixture(scope="module")
def graph(repository):
    """``{module: modules it imports}`` over both packages."""
    files = {name_of(file, repository): file for package in PACKAGES for file in (repository / package).rglob("*.py")}
    return {name: imported(file, set(files)) - {name} for name, file in files.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_needs_itself(graph, package):
    inside = {name: needed for name, needed in graph.items() if name.split(".")[0] == package}
    assert any(inside.values())
    TopologicalSorter(inside).prepare()


def test_analysis_uses_little_of_the_laboratory_which_uses_none_of_it(graph):
    for name, needed in graph.items():
        for other in needed:
            if name.startswith("rwkv_lab"):
                assert not other.startswith("analysis"), f"{name} imports {other}"
            elif other.startswith("rwkv_lab."):
                assert other.startswith(SHARED), f"{name} imports {other}"


def test_the_rooms_of_analysis_are_in_order(graph):
    for name, needed in graph.items():
        room = name.split(".")[1:2]
        for other in needed:
            target = other.split(".")[1:2]
            if name.startswith("analysis.") and other.startswith("analysis.") and {*room, *target} <= set(ORDER):
                assert ORDER.index(target[0]) >= ORDER.index(room[0]), f"{name} imports {other}"


def test_no_module_of_analysis_imports_torch(graph):
    modules = [name for name in graph if name.split(".")[0] == "analysis" and not name.endswith("__main__")]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
