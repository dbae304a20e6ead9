"""What could run code from a file or the network is not in our sources: no pickle, no `eval`, no
unsafe YAML, no model code from a repository.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for package in ("actors", "cluster", "rewards", "trainers")
    for path in sorted((ROOT / package).rglob("*.py"))
]
MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}


def findings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in CALLS:
                safe = any(
                    k.arg == "weights_only" and getattr(k.value, "value", None) is True
                    for k in node.keywords
                )
                if not (ast.unparse(node.func) == "torch.load" and safe):
                    yield ast.unparse(node.func)
            for keyword in node.keywords:
                on = getattr(keyword.value, "value", None) is not False
                if keyword.arg in ("allow_pickle", "trust_remote_code") and on:
                    yield f"{keyword.arg}={ast.unparse(keyword.value)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_from_outside_is_run(path: Path):
    assert not list(findings(ast.parse(path.read_text())))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", "pickle"),
        ("from cloudpickle import loads", "cloudpickle"),
        ("torch.load(f)", "torch.load"),
        ("yaml.load(text, Loader)", "yaml.load"),
        ("np.load(f, allow_pickle=True)", "allow_pickle=True"),
        ("load(folder, trust_remote_code=asked)", "trust_remote_code=asked"),
    ],
)
def test_the_check_finds_what_it_is_for(code: str, found: str):
    assert list(findings(ast.parse(code))) == [found]
    assert not list(findings(ast.parse("torch.load(f, weights_only=True); yaml.safe_load(t)")))
