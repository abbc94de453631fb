"""The house: imports run downwards only, rooms and files stay small enough to be read."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "aepo"
MODULES = sorted(PACKAGE.rglob("*.py"))
GROUND = ("files", "methods", "settings", "progress", "environments")  # below data, above core
ROOMS = ("core", "ground", "data", "learners", "exact", "study", "top")  # each may import what stands before it


def room(module: str) -> str:
    """The room of a dotted module name below aepo."""
    first = module.partition(".")[0]
    return first if first in ROOMS else "ground" if first in GROUND else "top"


def imports(path: Path) -> set[str]:
    """Modules of aepo, without the package's name, that a file imports anywhere, but for type checking."""
    tree, found = ast.parse(path.read_text()), set()
    typing = {
        n
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for n in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("aepo.") for alias in node.names if alias.name.startswith("aepo.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "aepo":
            package = node.module.removeprefix("aepo").lstrip(".")
            folder = PACKAGE / package.replace(".", "/")
            for alias in node.names:
                inside = folder.is_dir() and ((folder / f"{alias.name}.py").exists() or (folder / alias.name).is_dir())
                found.add(f"{package}.{alias.name}".lstrip(".") if inside else package)
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def test_imports_run_downwards_only():
    wrong = [
        f"{name_of(path)} imports {target}"
        for path in MODULES
        if path.name != "__init__.py"
        for target in sorted(imports(path))
        if target and ROOMS.index(room(target)) > ROOMS.index(room(name_of(path)))
    ]
    assert not wrong, "\n".join(wrong)


def test_core_knows_torch_and_numpy_only():
    known = {
        "copy",
        "torch",
        "numpy",
        "math",
        "collections",
        "dataclasses",
        "functools",
        "itertools",
        "typing",
        "hashlib",
    }
    for path in (PACKAGE / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in known | {"__future__"} or name.startswith("aepo.core"), f"{path.name} imports {name}"


def test_no_circle():
    graph = {name_of(path): imports(path) & {name_of(p) for p in MODULES} for path in MODULES}
    done: set[str] = set()
    while left := [m for m in graph if m not in done]:
        free = [m for m in left if graph[m] <= done]
        assert free, f"a circle of imports among {left}"
        done |= set(free)


def test_rooms_and_files_stay_small():
    lines = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert not {path.name: count for path, count in lines.items() if count > 400}
    assert sum(count for path, count in lines.items() if path.parent.name == "core") <= 1_200
    assert sum(lines.values()) <= 8_000
    assert sum(path.parent == PACKAGE for path in MODULES) <= 14
