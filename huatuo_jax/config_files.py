"""Config files in, `RunConfig`s out; configs to plain values and back; what a rerun may change."""

import contextlib
import importlib.util
import json
import sys
import sysconfig
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huatuo_jax.config import RunConfig, require
from huatuo_jax.errors import ConfigError

MAY_DIFFER_ON_RESUME = (
    "mesh",
    "compute",
    "checkpoint",
    "logging",
    "accumulation",
    "max_skipped",
    "questions",
    "data.threads",
    "data.prefetch",
    "data.tokens",
    "data.plan",
)
"""Fields (dotted prefixes) that a rerun of the same run directory may change: they do not change what is learned.

`data.tokens` and `data.plan` are paths; their content is held fixed by the plan's hash.
"""


def recipes() -> dict[str, Path]:
    """Name → file of the configs that ship with this project, in a checkout and in an installed wheel alike."""
    installed = Path(__file__).parent / "recipes"  # `setup.py` installs `configs/` there, so that no top-level name is taken
    folder = installed if installed.is_dir() else Path(__file__).parents[1] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def load_config(name: str | Path) -> RunConfig:
    """Loads a config file, or a recipe that ships with this project by its name ("huatuo2_7b"), and returns `config()`.

    A config may import its neighbours: `from configs.mine import MIX` and `import mine` both find `configs/mine.py` beside it.

    Raises:
      ConfigError: no such file or recipe, or the file does not make a `RunConfig`; names the line at fault.
    """
    path = Path(name)
    if not path.is_file():
        shipped = recipes()
        require(str(name) in shipped, f"no config file {name} and no recipe of that name; the recipes are {', '.join(shipped)}")
        path = shipped[str(name)]
    spec = importlib.util.spec_from_file_location(f"_run_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file; a config is a .py file with `def config() -> RunConfig`")
    module = importlib.util.module_from_spec(spec)
    try:
        with _importing_neighbours(path.resolve().parent):
            spec.loader.exec_module(module)
            make = getattr(module, "config", None)
            if make is None:
                raise ConfigError(f"{path} has no function `config() -> RunConfig`")
            made = make()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        at = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = at[-1] if at else getattr(error, "lineno", None)
        place = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"{place}: {type(error).__name__}: {error}; correct the config") from error
    require(isinstance(made, RunConfig), f"{path}: config() returned {type(made).__name__}, not RunConfig")
    return made


@contextlib.contextmanager
def _importing_neighbours(folder: Path) -> Iterator[None]:
    """Within the context the modules of `folder` can be imported, by their own name and as `<name of the folder>.<module>`.

    Afterwards they are forgotten: one process may load two folders that are both called `configs`, and a neighbour that was
    edited is read again.
    """

    def in_package(name: str) -> bool:
        return name.split(".")[0] == folder.name

    hidden = {name: module for name, module in sys.modules.items() if in_package(name)}
    library = folder.name in hidden and _is_installed(hidden[folder.name])  # ~/jax/law.py must not hide the library jax
    path_before = list(sys.path)
    if not library:
        for name in hidden:
            del sys.modules[name]
        package = types.ModuleType(folder.name)  # made here, for an installed package may have the folder's name
        package.__path__ = [str(folder)]
        sys.modules[folder.name] = package
    # The parent for packages beside the folder; the folder itself last, for it may hold a `random.py`.
    sys.path[:] = [str(folder.parent), *path_before, str(folder)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path_before
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if (in_package(name) and not library) or (file and Path(file).parent == folder):
                del sys.modules[name]
        sys.modules.update(hidden)


def _is_installed(module: types.ModuleType) -> bool:
    """Whether a module belongs to the standard library or to an installed package."""
    places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None) or ""]
    roots = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
    return any(place.startswith(roots) for place in places)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain values as dotted names: {"data": {"threads": 2}} → {"data.threads": 2}."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{prefix}{name}."))
        else:
            out[prefix + name] = value
    return out


class Difference(typing.NamedTuple):
    """A setting (dotted name) whose value is another one than before; a setting that is missing has the value None."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {_short(self.old)} → {_short(self.new)}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], may_differ: Iterable[str] = ()) -> list[Difference]:
    """The settings that differ between two nested mappings of plain values, sorted by name.

    Everything that continues earlier work (a run, a build, a collection, an answer file) saves its settings beside its output and
    refuses a rerun with others: this is what it names in the message.

    Args:
      may_differ: names, or the dotted prefixes of names, that are left out.
    """
    before, now = flatten(old), flatten(new)
    ignored = tuple(prefix + "." for prefix in may_differ)
    names = [name for name in sorted(before.keys() | now.keys()) if not (name + ".").startswith(ignored)]
    return [Difference(n, before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)]


def listed(changed: Iterable[Difference]) -> str:
    """The differences in one line of a message."""
    return "; ".join(map(str, changed))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
