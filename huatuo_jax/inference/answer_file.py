"""Answers in, a JSONL file out that a rerun continues: every line is durable before the next, a half-written last one is dropped.

`FILE.settings.json` beside it holds the settings that the answers were made with; other settings are refused.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import read_json, write_json


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
        self._file: IO[bytes] | None = None
        self._size = 0
        self._check_settings()
        self._whole, self.done = self._read()

    def __enter__(self) -> "AnswerFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")
        self._be_alone(self._file)
        write_json(self._beside, self._settings)
        self._file.truncate(self._whole)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file:
            self._file.close()

    def append(self, answer: Mapping[str, Any]) -> None:
        """Writes one answer, to the disk."""
        if self._file is None:
            raise RuntimeError("append outside of the with block")
        self._file.write((json.dumps(answer, ensure_ascii=False) + "\n").encode("utf-8"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done[answer["id"]] = dict(answer)

    def _be_alone(self, file: IO[bytes]) -> None:
        """Raises ConfigError if another process of this machine writes to the file, or did since it was read."""
        alone = os.fstat(file.fileno()).st_size == self._size
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alone = False
        except OSError:
            pass  # some network file systems have no locks
        if not alone:
            file.close()
            raise ConfigError(f"another process writes to {self.path}; wait for it, or choose another file")

    def _check_settings(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            return
        if not self._beside.exists():
            raise ConfigError(
                f"{self.path} exists, but not {self._beside.name} with its settings; choose another file or remove it"
            )
        old = read_json(self._beside)
        changed = [name for name in sorted(old.keys() | self._settings.keys()) if old.get(name) != self._settings.get(name)]
        if changed:
            named = "; ".join(f"{name}: {old.get(name)!r} then, {self._settings.get(name)!r} now" for name in changed)
            raise ConfigError(f"{self.path} was made with other settings ({named}); use those, choose another file or remove it")

    def _read(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """Bytes of whole lines, and the lines by id."""
        if not self.path.exists():
            return 0, {}
        content = self.path.read_bytes()
        self._size = len(content)
        whole = content.rfind(b"\n") + 1
        done = {}
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                answer = json.loads(line)
                done[answer["id"]] = answer
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{self.path}, line {number}: not an answer of `huatuo generate`; mend or remove it") from None
        return whole, done
