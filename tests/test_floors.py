"""Who may import whom: a room sees the floors below its own, and no modules go round in a circle.

See docs/design.md. Imports are read, not run: those inside functions and those under
`if TYPE_CHECKING` count too.
"""

import ast
import functools
import graphlib
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "tf_autoctx"

# Rooms by floor, the lowest first. A room is a module, or a folder with all that is in it; in
# `systems` the wings stand on `shared`. Rooms of one floor do not see each other, but for those of
# the ground floor.
FLOORS = (
    ("errors", "files", "spreadsheets", "configuration", "parts", "shipped", "version")
    + ("logbook", "native", "progress"),
    ("models", "losses", "metrics", "biometry", "growth", "postprocessing"),
    ("data", "training", "report", "export", "serving"),
    ("systems.shared",),
    ("systems",),
    ("commands",),
)
GROUND = FLOORS[:2]
WINGS = ("fetal_head", "multi_organ", "embryo", "renderer")
# Modules by which a command line is read: they are imported before Keras is wanted.
QUICK = r"(configuration|presets|options|declaration|registry|command_line|errors)$"


@functools.cache
def modules():
    """{name: (syntax tree, whether it is a package)} of every module."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if package else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8")), package
    return found


def imported(tree):
    """Names of modules that the statements of a tree import, ours as finely as they are named."""
    for node in ast.walk(tree) if isinstance(tree, ast.AST) else tree:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written in full"
            for alias in node.names:
                finer = f"{node.module}.{alias.name}"
                yield finer if finer in modules() else node.module


def at_start(tree):
    """The import statements that run when a module is imported: neither those inside functions nor
    those for the type checker."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.Try | ast.With) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test)
        ):
            yield from at_start(node)


def ours(names):
    return {name for name in names if name.split(".")[0] == PACKAGE}


def others(names):
    """Distributions that are not ours, by their first name."""
    return {name.split(".")[0] for name in names} - {PACKAGE}


def room(module):
    """(room, floor) of a module, counted from 0; the package itself is above all."""
    inside = module.removeprefix(PACKAGE).removeprefix(".")
    places = [(name, floor) for floor, names in enumerate(FLOORS) for name in names]
    fitting = [
        (name, floor) for name, floor in places if inside == name or inside.startswith(f"{name}.")
    ]
    assert fitting or not inside, f"{module} is in no room: name it in FLOORS"
    return max(fitting, key=lambda place: len(place[0]), default=(PACKAGE, len(FLOORS)))


def arrows():
    """(importing module, imported module), ours alone."""
    return [
        (module, name) for module, (tree, _) in modules().items() for name in ours(imported(tree))
    ]


def may_see(module, name):
    """Whether the rooms of two modules allow the first to import the second."""
    (here, floor), (there, lower) = room(module), room(name)
    if here == there:
        return True
    if floor == lower:
        return floor < len(GROUND)
    return lower < floor


def test_every_module_is_in_a_room():
    for module in modules():
        room(module)
    rooms = {room(module)[0] for module in modules()} - {PACKAGE}
    assert rooms == {name for floor in FLOORS for name in floor}


def test_the_rooms_are_explained():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert not [name for floor in FLOORS for name in floor if f"`{name}`" not in page]


def test_nothing_imports_upwards():
    assert not [arrow for arrow in arrows() if not may_see(*arrow)]


@pytest.mark.parametrize(
    "module, name, allowed",
    [
        ("training.loop", "training.checkpoints", True),
        ("training.loop", "metrics", True),
        ("training.loop", "data.pipeline", False),
        ("report.tables", "training.runs", False),
        ("losses", "training.loop", False),
        ("files", "errors", True),
        ("systems.embryo.training", "systems.shared.stages", True),
        ("systems.shared.stages", "systems.embryo.training", False),
        ("systems.shared.registry", "commands.predict", False),
        ("commands.predict", "systems.shared.prediction", True),
    ],
)
def test_the_rule_itself(module, name, allowed):
    assert may_see(f"{PACKAGE}.{module}", f"{PACKAGE}.{name}") is allowed


def test_a_wing_imports_no_other_wing():
    def wing(module):
        parts = module.split(".")
        return parts[2] if parts[1:2] == ["systems"] and len(parts) > 2 else None

    assert {wing(module) for module in modules()} - {None} == {*WINGS, "shared"}
    wrong = [
        (module, name)
        for module, name in arrows()
        if wing(module) in WINGS and wing(name) in WINGS and wing(module) != wing(name)
    ]
    assert not wrong


def test_the_registry_alone_names_the_wings():
    """What all systems share knows none of them: a fifth one is added without a change."""
    for module, (tree, _) in modules().items():
        if room(module)[0] == "systems.shared" and not module.endswith(".registry"):
            told = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
            assert not told & set(WINGS), module


def test_no_circle():
    graph = {module: set() for module in modules()}
    for module, name in arrows():
        graph[module].add(name)
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_models_and_losses_are_plain_keras():
    """But for the one module that asks for the backend, within its functions."""
    for module, (tree, _) in modules().items():
        if room(module)[0] in ("models", "losses"):
            asks = module == f"{PACKAGE}.models.backends"
            allowed = {"keras", "numpy", *["tensorflow"] * asks}
            assert "tensorflow" not in others(imported(list(at_start(tree)))), module
            assert asks or "backend.backend" not in ast.unparse(tree), module
            names = set(imported(tree))
            assert others(names) - sys.stdlib_module_names <= allowed, module
            seen = {room(name)[0] for name in ours(names)}
            assert seen <= {"models", "losses", "errors", "configuration"}, module


def test_the_report_knows_neither_training_nor_data_nor_systems():
    rooms = {
        room(name)[0]
        for module, (tree, _) in modules().items()
        if room(module)[0] == "report"
        for name in ours(imported(tree))
    }
    assert rooms <= {"report", "metrics", "growth", *FLOORS[0]}


def loaded_with(module):
    """Every name that importing a module imports: its own, and those of ours that it leads to."""
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parents = [name.rpartition(".")[0]] if "." in name else []
        if name in modules():
            tree, _ = modules()[name]
            waiting += [*parents, *imported(list(at_start(tree)))]
    return seen


def test_what_a_command_line_reads_waits_for_no_keras():
    quick = [module for module in modules() if re.search(QUICK, module)]
    quick += [
        module
        for module, (tree, _) in modules().items()
        if room(module)[0] == "commands" and _assigns(tree, "command")
    ]
    assert len(quick) > 25
    heavy = {"keras", "tensorflow", "SimpleITK", "matplotlib", "scipy", "skimage", "plotly"}
    slow = {module: others(loaded_with(module)) & heavy for module in quick}
    assert not {module: names for module, names in slow.items() if names}


def test_transitive_imports_are_followed():
    assert "keras" in loaded_with(f"{PACKAGE}.systems.fetal_head.system")
    assert f"{PACKAGE}.systems.fetal_head.presets" in loaded_with(
        f"{PACKAGE}.systems.fetal_head.configuration"
    )


def _assigns(tree, name):
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)
