"""The order of imports: a module imports only what stands before it, and no package has a circle."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "t2i"
# From left to right in each line, and from line to line; what stands in one set does not import each other.
ORDER = [
    {"rng", "image_grid", "hardware", "config"},
    {"runs", "hub"},
    {"diffusion", "optim"},
    {"models"},
    {"distributed"},
    {"data", "tracking"},
    {"evaluation"},
    {"sampling", "training", "comparison"},
    {"publishing", "sweeps", "judging", "backends"},
    {"experiment", "inspection"},
    {"tiny"},
    {"cli"},  # finds the commands by name, so that they can share what it holds
    {"api"},
    {
        "train",
        "check",
        "encode",
        "sample",
        "evaluate",
        "compare",
        "plan",
        "judge",
        "weights",
        "average",
        "translate",
        "push",
        "report",
    },
    {"__main__", "__init__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
MODULES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}


@cache
def imports(module: str) -> set[str]:
    """The modules of t2i that a module imports anywhere: at its top, in a function, or for type hints."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import; write the full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    inside = {name.removeprefix("t2i.") for name in found if name.startswith("t2i.")}
    inside |= {f"{name}.__init__" for name in inside}
    return {name for name in inside if name in MODULES}


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_has_its_place_in_the_order():
    assert {room(module) for module in MODULES} <= RANK.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_stands_before_it(module):
    for other in imports(module):
        assert room(other) == room(module) or RANK[room(other)] < RANK[room(module)], f"{module} imports {other}"


def test_no_imports_go_in_a_circle():
    tuple(TopologicalSorter({module: imports(module) for module in MODULES}).static_order())


def test_what_hydra_loads_at_start_up_is_light():
    """Importing a package must not import its modules: `--cfg job` would wait for PyTorch."""
    for name in ("config", "runs", "sweeps"):
        assert not imports(f"{name}.__init__"), name


def test_few_modules_stand_beside_the_packages():
    assert len(list(PACKAGE.glob("*.py"))) <= 17
