"""README and the code agree on modules and arguments, and imports go one way."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fruitcnn.compare_config import CompareConfig
from jobs import entry
from jobs.flags import spelling
from jobs.submit import SubmitConfig

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("fruitcnn", "jobs", "cluster") for path in (ROOT / folder).glob("[a-z]*.py"))
ENGINES = {"ray", "tensorflow", "keras"}


def imported(nodes: list[ast.stmt] | Iterator[ast.AST]) -> set[str]:
    """Full names: `from fruitcnn import storage` is fruitcnn and fruitcnn.storage."""
    names = set[str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def anywhere(path: Path) -> set[str]:
    """All that a module ever imports, but for what only type checkers see."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    return imported(ast.walk(tree))


def test_readme_lists_every_module() -> None:
    text = (ROOT / "README.md").read_text()
    listed = set(re.findall(r"\w+", text[text.index("## The files") : text.index("## Working on it")]))
    # Written with a star there.
    starred = [path.stem for path in MODULES if path.stem.endswith("_config") or path.stem.startswith("storage_")]
    assert {path.stem for path in MODULES} - listed - set(starred) == set()


def test_every_argument_in_readme_exists() -> None:
    configs = [CompareConfig, *(entry.load(name).config_class for name in entry.names()), SubmitConfig]
    known = {spelling(name, field) for config in configs for name, field in config.model_fields.items()}
    known |= {flag.replace("--", "--no-", 1) for flag in known} | {"--config", "--help"}
    of_others = {"--data-binary", "--frozen", "--inexact", "--logdir"}  # curl, uv, tensorboard
    used = set(re.findall(r"--[a-z][a-z-]+", (ROOT / "README.md").read_text()))
    assert used - known - of_others == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_imports_go_one_way(path: Path) -> None:
    tree = ast.parse(path.read_text())
    roots = {name.split(".")[0] for name in anywhere(path)}
    if path.parent.name == "fruitcnn":
        assert not roots & {"jobs", "cluster", "bench", "tests"}
    # Heavy imports happen when work starts: what a module imports when it is imported itself, --help waits for.
    if path.parent.name == "jobs":
        assert not {name.split(".")[0] for name in imported(tree.body)} & {*ENGINES, "numpy", "pyarrow"}
    if re.search(r"\bPure\b", ast.get_docstring(tree) or ""):
        assert not roots & ENGINES, "says that it is pure"
