"""The modules of analysis form no circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path


def name_of(file: Path, repository: Path) -> str:
    parts = file.relative_to(repository).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path, modules: set[str]) -> set[str]:
    """The ones of ``modules`` that ``file`` imports, inside its functions as well."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= below & modules or {node.module}
    return found & modules


def test_no_module_needs_itself(repository):
    files = {name_of(file, repository): file for file in (repository / "analysis").rglob("*.py")}
    graph = {name: imported(file, set(files)) - {name} for name, file in files.items()}
    assert any(graph.values())
    TopologicalSorter(graph).prepare()
