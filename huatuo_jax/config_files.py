"""Config files: loaded by path or, if they ship with this project, by name; and the plain values of two configs, compared.

A config is a Python file with a function `config() -> RunConfig` (see `config`). Everything that a run depends on is in that
value: it is saved as JSON beside the run's output (`config.config_to_dict`) and read back from checkpoints (`config_from_dict`),
and a rerun with other values is refused (`differences`). What must hold: a config is found and its neighbours are imported alike
from any folder, in a checkout and from a wheel, and afterwards no module of it is left behind. Next: `huatuo_jax.cli.train`,
which lets flags replace single fields.
"""

import contextlib
import importlib
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
    # Under a name that no import can reach, because the file may be called like a library (`train.py`, `json.py`).
    spec = importlib.util.spec_from_file_location(f"_run_config_{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file; a config is a .py file with `def config() -> RunConfig`")
    module = importlib.util.module_from_spec(spec)
    try:
        with _importing_neighbours(path.resolve().parent):
            sys.modules[spec.name] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
            make = getattr(module, "config", None)
            if make is None:
                raise ConfigError("it has no function `config() -> RunConfig`")
            made = make()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        # The last frame in the config itself: the error may have been raised in what it calls, but there the user can change it.
        at = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        line = at[-1] if at else getattr(error, "lineno", None)
        place = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"{place}: {type(error).__name__}: {error}; correct the config") from error
    require(isinstance(made, RunConfig), f"{path}: config() returned {type(made).__name__}, not RunConfig")
    return made


@contextlib.contextmanager
def _importing_neighbours(folder: Path) -> Iterator[None]:
    """Within the context, modules of `folder` can be imported by their own name and as `<name of the folder>.<module>`.

    The folder may be called like any other that is loaded in the same process, or like a library, and so may its files. For
    `~/law/configs/run.py` the search goes through

        the standard library and installed packages  →  ~/law/configs  →  ~/law  →  the rest (the working directory, PYTHONPATH)

    and `configs` is the folder itself; if an installed package has that name, it is found as well. Afterwards all of it is
    forgotten, so that two folders do not mix, and a neighbour that was edited is read again.
    """
    modules_before, path_before = dict(sys.modules), list(sys.path)
    hidden = {folder.name, *(path.stem for path in folder.glob("*.py"))}
    # A library that is loaded stays: two copies of jax or of ours would not know each other's classes.
    hidden -= {name for name in hidden if name in sys.modules and _is_library(sys.modules[name])}
    for name in modules_before:
        if name.split(".")[0] in hidden:
            del sys.modules[name]
    libraries = [entry for entry in path_before if _is_library_place(entry)]
    sys.path[:] = libraries
    importlib.invalidate_caches()  # a neighbour that was written a moment ago is found
    library = _imported(folder.name)
    package = library or types.ModuleType(folder.name)
    library_path = list(getattr(package, "__path__", ()))
    package.__path__ = [str(folder), *library_path]
    sys.modules[folder.name] = package
    sys.path += [str(folder), str(folder.parent), *(entry for entry in path_before if entry not in libraries)]
    try:
        yield
    finally:
        sys.path[:] = path_before
        package.__path__ = library_path
        if library is None:
            del sys.modules[folder.name]
        for name, module in list(sys.modules.items()):
            new = name not in modules_before and not _is_library(module)
            if new and any(Path(place).is_relative_to(folder.parent) for place in _places(module)):
                del sys.modules[name]
        sys.modules.update(modules_before)


def _imported(name: str) -> types.ModuleType | None:
    """The module of this name that is imported, or installed."""
    if not name.isidentifier():  # a folder called "v2.0" is no module's, and `find_spec` would look for one called "v2"
        return None
    if name in sys.modules:
        return sys.modules[name]
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _places(module: types.ModuleType) -> list[str]:
    """The file of a module, or the folders of a package without one."""
    file = getattr(module, "__file__", None)
    return [file] if file else list(map(str, getattr(module, "__path__", ())))


def _is_library(module: types.ModuleType) -> bool:
    """Whether a module belongs to the standard library, to an installed package or to this project."""
    is_built_in = getattr(module, "__name__", "") in sys.builtin_module_names
    return is_built_in or any(map(_is_library_place, _places(module)))


def _is_library_place(place: str) -> bool:
    ours = Path(__file__).parent
    roots = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    roots += [str(ours), str(ours.with_name("data_tools"))]
    return place.startswith(tuple(roots)) or not {"site-packages", "dist-packages"}.isdisjoint(Path(place).parts)


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
    # Flat, so that a message names the one field of a nested config and not the whole of it.
    before, now = flatten(old), flatten(new)
    ignored = tuple(prefix + "." for prefix in may_differ)
    # With a dot at the end, so that "data.plan" leaves out itself and what is below it, but not "data.planning".
    names = [name for name in sorted(before.keys() | now.keys()) if not (name + ".").startswith(ignored)]
    return [Difference(n, before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)]


def listed(changed: Iterable[Difference]) -> str:
    """The differences in one line of a message."""
    return "; ".join(map(str, changed))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
