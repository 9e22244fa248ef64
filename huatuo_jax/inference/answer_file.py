"""Answers in, a JSONL file out that a rerun continues: every line is durable before the next, a half-written last one is dropped.

`FILE.settings.json` beside it holds the settings that the answers were made with; other settings are refused.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from huatuo_jax.config_files import differences, listed
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import JsonLog, locked, read_json, read_log, write_json


class AnswerFile:
    """An answer file, open for more.

    Attributes:
      done: id → line of every answer that is there.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Opens a new file, or one of an earlier run with the same settings.

        Raises:
          ConfigError: an earlier run had other settings (named with old and new value), or left no settings.
          DataError: a line is no answer.
        """
        self.path, self._settings = path, dict(settings)
        self._beside = path.with_name(path.name + ".settings.json")
        self._log: JsonLog | None = None
        self._check_settings()
        self._size = path.stat().st_size if path.exists() else 0
        try:
            self.done: dict[str, dict[str, Any]] = {answer["id"]: answer for answer in read_log(path)}
        except (KeyError, TypeError):
            raise DataError(f"{path} has a line that is not an answer of `huatuo generate`; correct or remove it") from None

    def __enter__(self) -> "AnswerFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        busy = ConfigError(f"another process writes to {self.path}; wait for it, or choose another file")
        with ExitStack() as stack:
            stack.enter_context(locked(self.path, busy))
            if self.path.stat().st_size != self._size:  # it wrote after this one had read
                raise busy
            write_json(self._beside, self._settings)
            self._log = JsonLog(self.path, durable=True)
            stack.callback(self._log.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def append(self, answer: Mapping[str, Any]) -> None:
        """Writes one answer, to the disk."""
        if self._log is None:
            raise RuntimeError("append outside of the with block")
        self._log.append(answer)
        self.done[answer["id"]] = dict(answer)

    def _check_settings(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            return
        if not self._beside.exists():
            raise ConfigError(
                f"{self.path} exists, but not {self._beside.name} with its settings; choose another file or remove it"
            )
        if changed := differences(read_json(self._beside), self._settings):
            raise ConfigError(
                f"{self.path} was made with other settings ({listed(changed)}); use those, choose another file or remove it"
            )
