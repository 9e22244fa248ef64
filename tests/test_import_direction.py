"""Who may import whom: each room stands on the floors below it, nothing reaches back up, and the data side runs without jax."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import data_tools.cli
import huatuo_jax.cli

REPOSITORY = Path(__file__).parents[1]
PROGRAMS = {"huatuo_jax": huatuo_jax.cli.COMMANDS, "data_tools": data_tools.cli.COMMANDS}

FLOORS = (
    ("huatuo_jax", "huatuo_jax.errors"),
    ("huatuo_jax.io",),
    ("huatuo_jax.config",),
    ("huatuo_jax.config_files",),
    ("huatuo_jax.mixtures", "huatuo_jax.sharding", "huatuo_jax.data", "huatuo_jax.chat_client"),
    ("huatuo_jax.models", "data_tools.records"),
    ("huatuo_jax.report", "huatuo_jax.weights"),
    ("huatuo_jax.training", "huatuo_jax.inference"),
    ("data_tools.collect", "data_tools.unify", "data_tools.tokens", "data_tools.planning"),
    ("huatuo_jax.cli",),
    ("data_tools.cli",),
    ("configs",),
)
"""Rooms from the ground up. A room may import itself and the floors below it; rooms on one floor do not know each other."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NOT_ON = {
    "data_tools": {
        "huatuo_jax.sharding",
        "huatuo_jax.models",
        "huatuo_jax.weights",
        "huatuo_jax.training",
        "huatuo_jax.inference",
    }
}
"""Rooms that lie below but bring jax along, which preparing data does without."""

MODULES = sorted(path for top in ("huatuo_jax", "data_tools", "configs") for path in (REPOSITORY / top).rglob("*.py"))


PRIVATE_NAMES = {
    name
    for path in MODULES
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    for name in (getattr(node, "name", ""), getattr(node, "attr", ""), getattr(node, "id", ""))
    if re.fullmatch(r"_[a-z]\w*", name or "")
}
"""Functions, classes, attributes and variables of ours whose name says that nobody outside their module uses them."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """`huatuo_jax.data.rows` → `huatuo_jax.data`; `data_tools` alone holds no code."""
    words = module.split(".")
    return "configs" if words[0] == "configs" else ".".join(words[:2])


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            files = {name_of(file) for file in MODULES}
            found.update({name for name in submodules if name in files} or {node.module})
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_floors_below_it(path):
    room = room_of(name_of(path))
    if room == "data_tools":
        return
    used = {room_of(name) for name in imports(path) if name.split(".")[0] in ("huatuo_jax", "data_tools", "configs")} - {room}
    above = {other for other in used if FLOOR[other] >= FLOOR[room]}
    assert not above, f"{room} reaches up to {above}"
    assert not used & NOT_ON.get(room.split(".")[0], set())


def test_no_module_imports_itself_in_a_circle():
    graph = {name_of(path): {name for name in imports(path) if name != name_of(path)} for path in MODULES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module in graph and module not in done:
            for other in graph[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("top", ["data_tools", "huatuo_jax/chat_client", "huatuo_jax/data", "huatuo_jax/io"])
def test_the_data_side_imports_neither_jax_nor_grain(top):
    for path in (REPOSITORY / top).rglob("*.py"):
        if path.name != "loader.py":
            assert not {name.split(".")[0] for name in imports(path)} & {"jax", "jaxlib", "flax", "grain", "tensorflow"}, path


TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
TEST_MODULE = re.compile(
    r"^\s*(?:from tests[\w.]* import .*|(?:from|import) (?:tests\.[\w.]*)?)\b(test_\w+|conftest)\b", re.MULTILINE
)
PRIVATE = re.compile(r"""(?:\.|\bimport .*?\b|["'])(?<!\bself\.)(_[a-z]\w*)(?=\W)""")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(REPOSITORY / "tests")))
def test_tests_import_no_test_module_and_use_no_private_name_of_ours(path):
    """Text, not syntax, is read: some tests hold programs for other processes. What tests share lies in `tests/support`."""
    text = path.read_text(encoding="utf-8")
    assert not TEST_MODULE.findall(text)
    assert not set(PRIVATE.findall(text)) & PRIVATE_NAMES


@pytest.mark.parametrize(
    "words",
    [[program, *name.split()] for program, names in PROGRAMS.items() for name in ("", *names)],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(words):
    """numpy and etils alone take as long as everything else that `--help` needs."""
    program, *command = words
    code = f"""
import sys
from {program}.cli import main
main({[*command, "--help"]!r})
heavy = {{"jax", "grain", "flax", "tensorflow_datasets", "numpy", "etils"}} & set(sys.modules)
assert not heavy, heavy
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "usage: huatuo" in out
