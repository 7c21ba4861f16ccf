"""The structure of the source tree in figures: `python benchmarks/structure.py [SRC]`."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

SOURCE = Path(__file__).resolve().parents[1] / "src"
PACKAGE = "tunewise"


@dataclass(frozen=True)
class Structure:
    """The figures. Lists hold `name: figure` of the entries that count."""

    lines: int
    files: int
    longest_file: tuple[int, str]
    median_file: float
    longest_function: tuple[int, str]
    module_cycles: list[str]
    package_cycles: list[str]
    isinstance_checks: list[str]
    task_name_tests: list[str]
    any_per_thousand_lines: float
    scheduling_loops: list[str]


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    text: str
    tree: ast.Module
    is_package: bool

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    @property
    def folder(self) -> str:
        """The first package below tunewise, or the module itself where it lies beside them."""
        return ".".join(self.name.split(".")[:2])


def measure(source: Path = SOURCE) -> Structure:
    """Reads every file below `source`."""
    modules = [_read(path, source) for path in sorted((source / PACKAGE).rglob("*.py"))]
    names = {module.name for module in modules}
    imports = {module.name: set(_imports(module, names)) for module in modules if module.name != PACKAGE}
    folder_of = {module.name: module.folder for module in modules}
    folders: dict[str, set[str]] = {}
    for name, targets in imports.items():
        of = folders.setdefault(folder_of[name], set())
        of |= {folder_of[target] for target in targets if folder_of[target] != folder_of[name]}
    lines = sum(module.lines for module in modules)
    filled = [module.lines for module in modules if module.lines > 1]
    return Structure(
        lines=lines,
        files=len(modules),
        longest_file=max((module.lines, module.name) for module in modules),
        median_file=median(filled),
        longest_function=max(found for module in modules for found in _functions(module)),
        module_cycles=_cycles(imports),
        package_cycles=_cycles(folders),
        isinstance_checks=_isinstance_checks(modules),
        task_name_tests=[found for module in modules for found in _task_name_tests(module)],
        any_per_thousand_lines=1000 * sum(_count_any(module) for module in modules) / lines,
        scheduling_loops=[found for module in modules for found in _scheduling_loops(module)],
    )


def _read(path: Path, source: Path) -> Module:
    parts = path.relative_to(source).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    text = path.read_text(encoding="utf-8")
    return Module(".".join(parts[:-1] if is_package else parts), path, text, ast.parse(text), is_package)


def _imports(module: Module, names: set[str]) -> Iterator[str]:
    """Modules of the package that this one imports, inside functions too; imports for type checkers left out."""
    for node in _import_statements(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
            continue
        base = node.module or ""
        if node.level:
            above = module.name.split(".")[: len(module.name.split(".")) - node.level + module.is_package]
            base = ".".join([*above, *([base] if base else [])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            if full in names:
                yield full
            elif base in names:
                yield base


def _import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    else:
        for child in ast.iter_child_nodes(node):
            yield from _import_statements(child)


def _cycles(graph: dict[str, set[str]]) -> list[str]:
    """Strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[str] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component: list[str] = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                components.append(" ".join(sorted(component)))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return components


def _functions(module: Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{module.name}:{node.name}"


def _isinstance_checks(modules: list[Module]) -> list[str]:
    """`isinstance` and `issubclass` on classes of this package, outside the file that defines them; exceptions left
    out, for that is what `except` asks of them too."""
    home: dict[str, set[str]] = {}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and not node.name.endswith("Error"):
                home.setdefault(node.name, set()).add(module.name)
    found = []
    for module in modules:
        for node in ast.walk(module.tree):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass")):
                continue
            if len(node.args) < 2:
                continue
            asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            asked |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
            own = {name for name in asked if name in home and module.name not in home[name]}
            if own:
                found.append(f"{module.name}:{node.lineno}: {ast.unparse(node)}")
    return found


_TASKS = {"classification", "regression", "choice", "causal", "generation", "image"}
_KINDS = {"classes", "value", "tokens", "choices", "labels", "score", "language", *_TASKS}


def _task_name_tests(module: Module) -> list[str]:
    """Comparisons of a task's name, or of the kind of a head, outside tasks/ (models/head.py says what a kind is)."""
    if module.folder == f"{PACKAGE}.tasks" or module.name == f"{PACKAGE}.models.head":
        return []
    found = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        texts = {n.value for side in sides for n in ast.walk(side) if isinstance(n, ast.Constant)}
        names = [ast.unparse(side) for side in sides]
        about = any(re.search(r"(^|[._])(task|task_name|head\.kind|head_kind)(\.name)?$", name) for name in names)
        strings = {text for text in texts if isinstance(text, str)}
        if strings & _TASKS or (about and strings & _KINDS):
            found.append(f"{module.name}:{node.lineno}: {ast.unparse(node)}")
    return found


def _count_any(module: Module) -> int:
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(module.tree))


_QUEUES = re.compile(r"\b(waiting|pending|queued|queue|running|active|in_flight|under_way|busy|unfinished)\b")


def _scheduling_loops(module: Module) -> list[str]:
    """`while` loops that go on as long as jobs wait or run; of nested ones the outer one."""
    loops = [node for node in ast.walk(module.tree) if isinstance(node, ast.While)]
    scheduling = [loop for loop in loops if _QUEUES.search(ast.unparse(loop.test))]
    inner = {id(node) for loop in scheduling for child in loop.body for node in ast.walk(child)}
    return [f"{module.name}:{loop.lineno}" for loop in scheduling if id(loop) not in inner]


def main() -> None:
    """Prints the figures, a line each."""
    structure = measure(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE)
    for field in fields(structure):
        value = getattr(structure, field.name)
        title = field.name.replace("_", " ")
        if isinstance(value, list):
            print(f"{title}: {len(value)}", *value, sep="\n  ")
        elif isinstance(value, tuple):
            print(f"{title}: {value[0]} ({value[1]})")
        else:
            print(f"{title}: {value:,.1f}" if isinstance(value, float) else f"{title}: {value:,}")


if __name__ == "__main__":
    main()
