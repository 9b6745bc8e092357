"""Python's modules as they are written, found without being imported: what is in them, takes what, and speaks of what.

So a version of vLLM can be looked into that this machine cannot run: what comes first on the path is what is read.
"""

import ast
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.Module | ast.ClassDef | Function


class NotThereError(LookupError):
    """Nothing has this name."""


@dataclass(frozen=True)
class Place:
    """A module, a class or a function.

    Attributes:
        name: its dotted name.
        module: the module's that it is written in.
        node: its syntax.
    """

    name: str
    module: str
    node: Definition

    def inside(self, name: str) -> "Place":
        """What has this name in here: defined, inherited, or imported by name.

        Raises:
            NotThereError: nothing has, or it is no class or function.
        """
        for statement in _statements(self.node):
            if isinstance(statement, ast.ClassDef | Function) and statement.name == name:
                return Place(f"{self.name}.{name}", self.module, statement)
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    if (alias.asname or alias.name) == name:
                        return find(f"{_imported_from(self.module, statement)}.{alias.name}")
        for base in self.bases:
            try:
                return base.inside(name)
            except NotThereError:
                continue
        raise NotThereError(f"{self.name} has no {name!r}")

    @cached_property
    def bases(self) -> tuple["Place", ...]:
        """The classes that a class names as its bases, as far as their packages are read here."""
        named = self.node.bases if isinstance(self.node, ast.ClassDef) else []
        return tuple(found for base in named if (found := self._base(base)) is not None)

    def _base(self, base: ast.expr) -> "Place | None":
        base = base.value if isinstance(base, ast.Subscript) else base
        try:
            return find(self.module).inside(base.id) if isinstance(base, ast.Name) else None
        except NotThereError:
            return None

    @cached_property
    def lineage(self) -> tuple["Place", ...]:
        """A class and all that it inherits from, nearest first."""
        found = {self.name: self}
        for base in self.bases:
            found |= {place.name: place for place in base.lineage if place.name not in found}
        return tuple(found.values())

    @cached_property
    def own_names(self) -> frozenset[str]:
        """What is defined, assigned or imported in here; for a class also what its methods assign to `self`."""
        return frozenset(_own_names(self.node))

    @cached_property
    def names(self) -> frozenset[str]:
        """The same, and what a class inherits."""
        return frozenset[str]().union(*(place.own_names for place in self.lineage))

    @cached_property
    def spoken_of(self) -> frozenset[str]:
        """Every name, attribute, keyword and text in here."""
        return frozenset(_spoken_of(self.node))

    @cached_property
    def positional(self) -> tuple[str, ...]:
        """The parameters that may be given by position, without `self`; of a class its fields, if it says no more."""
        if isinstance(self.node, ast.ClassDef):
            if "__init__" in self.names:
                return self.inside("__init__").positional
            return tuple(
                dict.fromkeys(name for place in reversed(self.lineage) for name in _fields(place.node))
            )
        assert not isinstance(self.node, ast.Module)
        named = [argument.arg for argument in (*self.node.args.posonlyargs, *self.node.args.args)]
        return tuple(named[1:] if named[:1] in (["self"], ["cls"]) else named)

    @cached_property
    def parameters(self) -> frozenset[str]:
        """Those that may be given by name."""
        if isinstance(self.node, ast.ClassDef):
            return (
                self.inside("__init__").parameters if "__init__" in self.names else frozenset(self.positional)
            )
        assert not isinstance(self.node, ast.Module)
        return frozenset((*self.positional, *(argument.arg for argument in self.node.args.kwonlyargs)))

    def calls(self, name: str) -> Iterator[ast.Call]:
        """The calls in here of anything with this name."""
        for node in ast.walk(self.node):
            if isinstance(node, ast.Call) and name in (
                getattr(node.func, "attr", None),
                getattr(node.func, "id", None),
            ):
                yield node


@cache
def find(name: str) -> Place:
    """A module, class or function by its dotted name.

    Raises:
        NotThereError: there is none.
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if (path := file_of(module)) is not None:
            place = Place(module, module, _parsed(path))
            if length < len(parts):
                place = find(module)
            for part in parts[length:]:
                place = place.inside(part)
            return place
    raise NotThereError(f"there is no module {name!r}")


def _parsed(path: Path) -> ast.Module:
    """Nothing in it is garbage, and looking for some takes longer than everything else here."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        if enabled:
            gc.enable()


@cache
def file_of(module: str) -> Path | None:
    """The file of a module; None where there is none."""
    package, *parts = module.split(".")
    for folder in _folders(package):
        path = folder.joinpath(*parts)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def modules_of(package: str) -> Iterator[tuple[str, Path]]:
    """All modules in a package, with their files."""
    file = file_of(package)
    assert file is not None
    for path in sorted(file.parent.rglob("*.py")):
        parts = path.relative_to(file.parent).with_suffix("").parts
        yield ".".join((package, *(part for part in parts if part != "__init__"))), path


@cache
def _folders(package: str) -> tuple[Path, ...]:
    spec = find_spec(package)
    return tuple(map(Path, spec.submodule_search_locations or ())) if spec is not None else ()


def _imported_from(module: str, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    file, parts = file_of(module), module.split(".")
    up = statement.level - (file is not None and file.name == "__init__.py")
    return ".".join([*(parts[:-up] if up else parts), *filter(None, [statement.module])])


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """What is written in a module or a class, also under conditions; the last of several definitions comes first."""
    for statement in reversed(getattr(node, "body", ())):
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for part in (statement, *getattr(statement, "handlers", ())):
                yield from _statements(part)
            for branch in ("orelse", "finalbody"):
                yield from _statements(ast.Module(getattr(statement, branch, []), []))
        else:
            yield statement


def _own_names(node: Definition) -> Iterator[str]:
    for statement in _statements(node):
        if isinstance(statement, ast.ClassDef | Function):
            yield statement.name
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in statement.names)
        else:
            yield from (target.id for target in _targets(statement) if isinstance(target, ast.Name))
        if isinstance(node, ast.ClassDef) and isinstance(statement, Function):
            for target in (target for inner in ast.walk(statement) for target in _targets(inner)):
                if isinstance(target, ast.Attribute) and getattr(target.value, "id", None) == "self":
                    yield target.attr


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    """What a statement assigns to."""
    given = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return
    for target in given:
        yield from target.elts if isinstance(target, ast.Tuple | ast.List) else [target]


def _fields(node: ast.AST) -> list[str]:
    """The fields of a dataclass and the like, in order."""
    return [
        statement.target.id
        for statement in getattr(node, "body", ())
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and "ClassVar" not in ast.unparse(statement.annotation)
    ]


def _spoken_of(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        elif isinstance(inner, ast.Attribute):
            yield inner.attr
        elif isinstance(inner, ast.keyword) and inner.arg is not None:
            yield inner.arg
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value
