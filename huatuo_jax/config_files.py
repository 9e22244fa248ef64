"""Config files in, `RunConfig`s out; configs to plain values and back; what a rerun may change."""

import dataclasses
import importlib.util
import sys
import traceback
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from huatuo_jax.config import RunConfig, require
from huatuo_jax.errors import ConfigError

T = TypeVar("T")

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


def load_config(path: str | Path) -> RunConfig:
    """Loads a config file and returns `config()`; its folder's parent is importable, so that configs can share modules."""
    path = Path(path)
    require(path.is_file(), f"no config file {path}; see configs/ for examples")
    root = str(path.resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(f"_run_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file; a config is a .py file with `def config() -> RunConfig`")
    module = importlib.util.module_from_spec(spec)
    try:
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
        raise ConfigError(f"{place}: {type(error).__name__}: {error}; mend the config") from error
    require(isinstance(made, RunConfig), f"{path}: config() returned {type(made).__name__}, not RunConfig")
    return made


def config_to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def config_from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of `config_to_dict`; unknown fields are refused by name."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    require(not unknown, f"unknown fields of {kind.__name__}: {', '.join(unknown)}")
    return kind(**{name: _typed(hints[name], value) for name, value in values.items()})


def _typed(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _typed(args[0], value)
    if dataclasses.is_dataclass(hint):
        return config_from_dict(typing.cast(type, hint), value)
    if origin is tuple:
        return tuple(_typed(args[0], v) for v in value)
    if origin is Mapping:
        return {k: _typed(args[1], v) for k, v in value.items()}
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain values as dotted names: what a list of differences speaks of."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{prefix}{name}."))
        else:
            out[prefix + name] = value
    return out


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Dotted name, old and new value of every field that differs and may not differ on resume."""
    a, b = flatten(old), flatten(new)
    names = [n for n in sorted(a.keys() | b.keys()) if a.get(n) != b.get(n)]
    may_differ = tuple(prefix + "." for prefix in MAY_DIFFER_ON_RESUME)
    return [(n, a.get(n), b.get(n)) for n in names if not (n + ".").startswith(may_differ)]
