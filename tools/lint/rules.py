"""The rules. Each is a function from a parsed module to (line, message); the message says why.

A line that ends in a comment `# lint: allow <rule> (<reason>)` is exempt from that rule.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeGuard

Finding = tuple[int, str]
Rule = Callable[[ast.Module, str], Iterator[Finding]]

ROUTE_METHODS = {"get", "post", "put", "patch", "delete", "api_route", "websocket"}
RECONCILED_ROWS = {"RunRow", "JobRow", "InstanceRow", "FleetRow"}
PERMISSION_WORDS = re.compile(
    r"\b(Public|Anyone|Authenticated|MemberOf|ManagerOf|AdminOf|GlobalAdmin|CallerOf|require_\w+|\w*permission\w*)\b"
)


def only_the_engine_writes_a_status(tree: ast.Module, module: str) -> Iterator[Finding]:
    """Assignments to `<row>.status`, and `update(...).values(status=…)`, in the server outside of the engine."""
    in_scope = module.startswith("dstack.server.") and not module.startswith(
        ("dstack.server.orchestrator.engine", "dstack.server.orchestrator.recording", "dstack.server.proxy")
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


def each_route_declares_a_permission(tree: ast.Module, module: str) -> Iterator[Finding]:
    """Handlers decorated `@router.<method>` under `dstack.server.api`."""
    if not module.startswith("dstack.server.api"):
        return
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        routes = [decorator for decorator in node.decorator_list if _is_route(decorator)]
        if not routes:
            continue
        declared = [ast.unparse(argument.annotation) for argument in _arguments(node) if argument.annotation]
        declared += [ast.unparse(route) for route in routes]
        if not any(PERMISSION_WORDS.search(text) for text in declared):
            yield (
                node.lineno,
                f"route {node.name} declares no permission; who may call it must be readable at the route"
                " (a parameter or dependency of dstack.server.api.permissions)",
            )


def _sets_status(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(target, ast.Attribute) and target.attr == "status" for target in targets)


def _is_call_of(node: ast.AST, method: str) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method


def _is_route(decorator: ast.expr) -> bool:
    return (
        isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.func.attr in ROUTE_METHODS
        and isinstance(decorator.func.value, ast.Name)
        and "router" in decorator.func.value.id
    )


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def _imported_names(tree: ast.Module) -> set[str]:
    return {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}


RULES: dict[str, Rule] = {
    "only-the-engine-writes-a-status": only_the_engine_writes_a_status,
    "each-route-declares-a-permission": each_route_declares_a_permission,
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
