"""Check Python blocks of the documentation without running them: imports, names, attributes and arguments must exist.

Blocks need weights and photographs that tests do not have. So a block is parsed and checked statement by statement: all
imports are executed, all names must be bound, and where the class of a value is known (from a constructor or a return
annotation) its attributes must exist and calls must match the signature.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import importlib
import importlib.util
import inspect
import typing
from dataclasses import dataclass
from types import ModuleType, NoneType, UnionType
from typing import Any


class SnippetError(AssertionError):
    """A line that would fail."""


@dataclass(frozen=True)
class Value:
    """An object of a known class, or a sequence of them (``many``)."""

    kind: type
    many: bool = False


#: An object of unknown type.
UNKNOWN = object()


def check(source: str) -> None:
    """Check one block.

    Raises:
        SnippetError: with the line and the problem.
    """
    tree = ast.parse(source)
    compile(tree, "<block>", "exec")
    Checker(source).body(tree.body, {})


class Checker(ast.NodeVisitor):
    """Checks statements in order; ``scope`` maps names to objects, :class:`Value` or :data:`UNKNOWN`."""

    def __init__(self, source: str) -> None:
        self.lines = source.splitlines()

    def fail(self, node: ast.AST, what: str) -> typing.NoReturn:
        raise SnippetError(f"{what}: {self.lines[node.lineno - 1].strip()}")

    def body(self, statements: list[ast.stmt], scope: dict[str, Any]) -> None:
        for statement in statements:
            self.statement(statement, scope)

    def statement(self, node: ast.stmt, scope: dict[str, Any]) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.imported(node, scope)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            scope[node.name] = UNKNOWN
            inner = dict(scope)
            if isinstance(node, ast.FunctionDef):
                inner |= dict.fromkeys((a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)), UNKNOWN)
            for expression in [*node.decorator_list, *getattr(node, "bases", [])]:
                self.infer(expression, scope)
            self.body(node.body, inner)
        elif isinstance(node, ast.Assign):
            value = self.infer(node.value, scope)
            for target in node.targets:
                self.bind(target, value, scope)
        elif isinstance(node, ast.For):
            self.bind(node.target, self.item(self.infer(node.iter, scope)), scope)
            self.body(node.body, scope)
        elif isinstance(node, ast.With):
            for item in node.items:
                value = self.infer(item.context_expr, scope)
                if item.optional_vars is not None:
                    self.bind(item.optional_vars, value, scope)
            self.body(node.body, scope)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    self.statement(child, scope)
                elif isinstance(child, ast.AnnAssign | ast.expr):
                    if isinstance(getattr(child, "ctx", None), ast.Store):
                        self.bind(child, UNKNOWN, scope)
                    else:
                        self.infer(child, scope)

    def imported(self, node: ast.Import | ast.ImportFrom, scope: dict[str, Any]) -> None:
        for alias in node.names:
            name = alias.name if isinstance(node, ast.Import) else str(node.module)
            try:
                module = importlib.import_module(name)
                if isinstance(node, ast.ImportFrom):
                    scope[alias.asname or alias.name] = getattr(module, alias.name)
                else:
                    top = name.split(".")[0]
                    scope[alias.asname or top] = module if alias.asname else importlib.import_module(top)
            except (ImportError, AttributeError) as error:
                self.fail(node, str(error))

    def bind(self, target: ast.expr, value: Any, scope: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self.bind(part, UNKNOWN, scope)
        else:
            self.infer(target, scope)

    def item(self, value: Any) -> Any:
        return Value(value.kind) if isinstance(value, Value) and value.many else UNKNOWN

    def infer(self, node: ast.expr, scope: dict[str, Any]) -> Any:
        """The object or :class:`Value` of an expression."""
        if isinstance(node, ast.Name):
            if node.id not in scope and not hasattr(builtins, node.id):
                self.fail(node, f"{node.id} is not bound")
            return scope.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            return self.attribute(node, self.infer(node.value, scope))
        if isinstance(node, ast.Call):
            return self.call(node, scope)
        if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp):
            inner = dict(scope)
            for part in node.generators:
                self.bind(part.target, self.item(self.infer(part.iter, inner)), inner)
                for condition in part.ifs:
                    self.infer(condition, inner)
            for result in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
                self.infer(result, inner)
            return UNKNOWN
        if isinstance(node, ast.Lambda):
            self.infer(node.body, {**scope, **dict.fromkeys((a.arg for a in node.args.args), UNKNOWN)})
            return UNKNOWN
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.infer(child, scope)
        return UNKNOWN

    def attribute(self, node: ast.Attribute, owner: Any) -> Any:
        if owner is UNKNOWN or (isinstance(owner, Value) and owner.many):
            return UNKNOWN
        if isinstance(owner, Value):
            return self.of_instance(node, owner.kind)
        if not hasattr(owner, node.attr):
            if isinstance(owner, ModuleType) and importlib.util.find_spec(f"{owner.__name__}.{node.attr}"):
                return importlib.import_module(f"{owner.__name__}.{node.attr}")
            self.fail(node, f"{getattr(owner, '__name__', owner)} has no {node.attr}")
        return getattr(owner, node.attr)

    def of_instance(self, node: ast.Attribute, kind: type) -> Any:
        if not kind.__module__.startswith("smartclip_det"):
            return UNKNOWN
        found = inspect.getattr_static(kind, node.attr, None)
        if found is None:
            ours = [k for k in kind.__mro__ if k.__module__.startswith("smartclip_det")]
            known = any(node.attr in vars(k).get("__annotations__", {}) for k in kind.__mro__)
            if not known and not any(f"self.{node.attr}" in inspect.getsource(k) for k in ours):
                self.fail(node, f"{kind.__name__} has no {node.attr}")
            return UNKNOWN
        if isinstance(found, property):
            return returned(found.fget)
        if isinstance(found, staticmethod | classmethod):
            return getattr(kind, node.attr)
        return Method(found) if callable(found) else UNKNOWN

    def call(self, node: ast.Call, scope: dict[str, Any]) -> Any:
        function = self.infer(node.func, scope)
        for argument in [*node.args, *(k.value for k in node.keywords)]:
            self.infer(argument.value if isinstance(argument, ast.Starred) else argument, scope)
        method = isinstance(function, Method)
        function = function.function if isinstance(function, Method) else function
        if function is UNKNOWN or isinstance(function, Value) or not callable(function):
            return UNKNOWN
        home = getattr(function, "__module__", None) or ""
        if home.startswith("smartclip_det") and not any(isinstance(a, ast.Starred) for a in node.args):
            named = [k.arg for k in node.keywords if k.arg]
            try:
                inspect.signature(function).bind(*[None] * (len(node.args) + method), **dict.fromkeys(named))
            except TypeError as error:
                self.fail(node, f"{getattr(function, '__qualname__', function)}: {error}")
        return Value(function) if inspect.isclass(function) else returned(function)


@dataclass(frozen=True)
class Method:
    """A function whose first argument is the instance."""

    function: Any


def returned(function: Any) -> Any:
    """Return type by annotation; :data:`UNKNOWN` without one."""
    function = inspect.unwrap(function)
    hint = getattr(function, "__annotations__", {}).get("return")
    if isinstance(hint, str):
        try:
            hint = eval(hint, getattr(function, "__globals__", {}))
        except NameError:  # Imported only for type checkers.
            return UNKNOWN
    return of_hint(hint)


def of_hint(hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, collections.abc.Iterator, collections.abc.Iterable, collections.abc.Sequence):
        inner = of_hint(args[0])
        return Value(inner.kind, many=True) if isinstance(inner, Value) else UNKNOWN
    if origin in (UnionType, typing.Union):
        rest = [a for a in args if a is not NoneType]
        return of_hint(rest[0]) if len(rest) == 1 else UNKNOWN
    return Value(hint) if inspect.isclass(hint) and hint is not object else UNKNOWN
