"""The rules. Each is a function from a parsed module to (line, message); the message says why.

A line that ends in a comment `# lint: allow <rule> (<reason>)` is exempt from that rule.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeGuard

Finding = tuple[int, str]
Rule = Callable[[ast.Module, str], Iterator[Finding]]

RECONCILED_ROWS = {"RunRow", "JobRow", "InstanceRow", "FleetRow"}


def only_the_engine_writes_a_status(tree: ast.Module, module: str) -> Iterator[Finding]:
    """Assignments to `<row>.status`, and `update(...).values(status=…)`, in the server outside of the engine."""
    in_scope = module.startswith("dstack.server.") and not module.startswith(
        ("dstack.server.orchestrator.engine", "dstack.server.orchestrator.passes")
    )
    if not in_scope or not RECONCILED_ROWS & _imported_names(tree):
        return
    why = (
        "only the engine writes a status, in the transaction that holds the lease, so that no two writers"
        " disagree; record an intent (a `*_requested` column) and wake the key instead"
    )
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)) and _sets_status(node):
            yield node.lineno, why
        if _is_call_of(node, "values") and any(keyword.arg == "status" for keyword in node.keywords):
            yield node.lineno, why


def _sets_status(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(target, ast.Attribute) and target.attr == "status" for target in targets)


def _is_call_of(node: ast.AST, method: str) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method


def _imported_names(tree: ast.Module) -> set[str]:
    return {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}


RULES: dict[str, Rule] = {
    "only-the-engine-writes-a-status": only_the_engine_writes_a_status,
}


def check_source(source: str, module: str) -> list[tuple[int, str, str]]:
    """(line, rule, message) of every broken rule in one module's text."""
    lines = source.splitlines()
    tree = ast.parse(source)
    return [
        (line, name, message)
        for name, rule in RULES.items()
        for line, message in rule(tree, module)
        if f"lint: allow {name} (" not in lines[line - 1]
    ]


def check_module(path: Path, root: Path) -> list[str]:
    """One line of text for each broken rule."""
    relative = path.relative_to(root)
    module = ".".join(relative.with_suffix("").parts[1:])
    findings = check_source(path.read_text(), module)
    return [f"{relative}:{line}: {name}: {message}" for line, name, message in sorted(findings)]
