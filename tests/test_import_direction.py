"""Who may import whom: planning runs without jax, and nothing reaches back up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.cli import COMMANDS

REPOSITORY = Path(__file__).parents[1]

LEAVES = {f"huatuo_jax.{name}" for name in ("errors", "files", "console", "config", "config_files")} | {"huatuo_jax"}
MAY_IMPORT = {
    "huatuo_jax.errors": set(),
    "huatuo_jax.files": set(),
    "huatuo_jax.console": {"huatuo_jax", "huatuo_jax.errors", "huatuo_jax.files"},
    "huatuo_jax.config": {"huatuo_jax.errors"},
    "huatuo_jax.config_files": {"huatuo_jax.config", "huatuo_jax.errors"},
    "huatuo_jax.data": LEAVES,
    "huatuo_jax.sharding": LEAVES | {"huatuo_jax.models"},
    "huatuo_jax.models": LEAVES | {"huatuo_jax.sharding"},
    "huatuo_jax.fingerprint": LEAVES,
    "huatuo_jax.checkpoint": LEAVES | {"huatuo_jax.fingerprint", "huatuo_jax.sharding"},
    "huatuo_jax.hf": LEAVES | {f"huatuo_jax.{part}" for part in ("data", "models", "sharding", "fingerprint", "checkpoint")},
    "huatuo_jax.training": LEAVES
    | {f"huatuo_jax.{part}" for part in ("data", "models", "sharding", "fingerprint", "checkpoint", "hf")},
    "huatuo_jax.inference": LEAVES
    | {f"huatuo_jax.{part}" for part in ("data", "models", "sharding", "fingerprint", "checkpoint", "hf")},
    "huatuo_jax.report": LEAVES | {"huatuo_jax.data"},
    "data_tools": LEAVES | {"huatuo_jax.data", "configs"},
    "configs": LEAVES | {"huatuo_jax.models"},
}
"""Package or module → what of this project it may import, beside itself; commands and cli may import anything."""

MODULES = sorted(
    path
    for top in ("huatuo_jax", "data_tools", "configs")
    for path in (REPOSITORY / top).rglob("*.py")
    if "commands" not in path.parts
)


def part_of(module: str) -> str:
    """`huatuo_jax.data.rows` → `huatuo_jax.data`; `data_tools.cli` → `data_tools`."""
    words = module.split(".")
    return ".".join(words[:2]) if words[0] == "huatuo_jax" else words[0]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module} if node.module != "huatuo_jax" else {f"huatuo_jax.{a.name}" for a in node.names})
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_go_one_way(path):
    module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    part = part_of(module)
    if module in ("huatuo_jax.cli", "huatuo_jax"):
        return
    ours = {part_of(name) for name in imports(path) if name.split(".")[0] in ("huatuo_jax", "data_tools", "configs")}
    ours = {"huatuo_jax" if name.startswith("huatuo_jax.__") else name for name in ours}
    assert ours - {part} <= MAY_IMPORT[part]


@pytest.mark.parametrize("top", ["data_tools", "huatuo_jax/data"])
def test_the_data_side_imports_neither_jax_nor_grain(top):
    for path in (REPOSITORY / top).rglob("*.py"):
        if path.name != "loader.py":
            assert not {name.split(".")[0] for name in imports(path)} & {"jax", "jaxlib", "flax", "grain", "tensorflow"}, path


@pytest.mark.parametrize("command", [[], *(name.split() for name in COMMANDS)], ids=" ".join)
def test_help_of_huatuo_data_starts_without_jax(command):
    code = f"""
import sys
from data_tools.cli import main
try:
    main({[*command, "--help"]!r})
except SystemExit:
    pass
heavy = {{"jax", "grain", "flax", "tensorflow_datasets"}} & set(sys.modules)
assert not heavy, heavy
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "huatuo-data" in out
