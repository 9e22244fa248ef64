"""Corpus files in, one JSONL file of pairs `{id, source, turns}` out, with the rejected rows beside it."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_tools.formats import canonical_source
from data_tools.importing import Progress, RejectedLog, check_inputs, check_share, plain_stem, read_all, stable_id
from data_tools.unify.template import Passage, to_passage
from huatuo_jax.errors import ConfigError
from huatuo_jax.files import written_aside

Unifier = Callable[[Passage], tuple[str, str]]


def unify_files(
    paths: Sequence[Path],
    out: Path,
    to_pair: Unifier,
    source: str | None = None,
    max_rejected: float = 0.01,
    on_read: Progress | None = None,
) -> dict[str, Any]:
    """Writes a pair per passage to `out`, and what was rejected to `out` with the suffix .rejected.jsonl.

    Args:
      to_pair: the unifier; raises RecordError for a passage of which it makes no pair.
      source: overrides the source that rows name; without both, a row's source is its file's name.

    Returns:
      records, sources, rejected, out.

    Raises:
      ConfigError: if a file is missing or given twice, or `out` is one of them.
      DataError: nothing to read, torn files, or too much is rejected; `out` is not written then.
    """
    check_inputs(paths)
    if any(path.resolve() == out.resolve() for path in paths):
        raise ConfigError(f"--out {out} is one of the input files")
    listed = out.with_suffix(".rejected.jsonl")
    sources: Counter[str] = Counter()
    with written_aside(out) as aside:
        with written_aside(listed) as listed_aside, open(listed_aside, "w", encoding="utf-8") as rejected_file:
            rejected = RejectedLog(rejected_file)
            with open(aside, "wb") as file:

                def handle(value: Any, path: Path, number: int) -> None:
                    own = value.get("source") if isinstance(value, dict) and isinstance(value.get("source"), str) else None
                    name = canonical_source(source or own or plain_stem(path))
                    passage = to_passage(value, name, stable_id(value, path, number))
                    pair = {"id": passage.id, "source": name, "turns": list(to_pair(passage))}
                    file.write((json.dumps(pair, ensure_ascii=False) + "\n").encode())
                    sources[name] += 1

                read_all(paths, handle, rejected, on_read)
        check_share(rejected, sources.total(), max_rejected, listed)
    return {"records": sources.total(), "sources": dict(sources), "rejected": rejected.count, "out": str(out)}
