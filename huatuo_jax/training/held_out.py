"""Held-out rows and parameters in, loss sums per source out."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from huatuo_jax.config import RunConfig
from huatuo_jax.data.dialogue import IGNORED
from huatuo_jax.data.loader import make_loader
from huatuo_jax.data.rows import HoldoutRows
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.sharding import batch_sharding
from huatuo_jax.training.step import build_eval


class HeldOut:
    """All held-out rows of a dataset, source after source, then padding rows up to whole batches; a row source for the loader."""

    def __init__(self, config: RunConfig, dataset: TokenDataset, batch_rows: int) -> None:
        self.length = config.data.sequence_length
        held = [s for s in dataset.sources if dataset.count(s, "holdout")]
        self.parts = [HoldoutRows(dataset, source, self.length, config.logging.eval_rows) for source in held]
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.batches = -(-int(self.starts[-1]) // batch_rows)
        self._size = self.batches * batch_rows

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index >= self.starts[-1]:
            return self._padding()
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part][index - int(self.starts[part])]

    def _padding(self) -> dict[str, np.ndarray]:
        zeros = np.zeros(self.length, np.int32)
        return {
            "tokens": zeros,
            "targets": zeros + IGNORED,
            "segment_ids": zeros,
            "positions": zeros,
            "source_ids": zeros - 1,
        }


class Evaluator:
    """Evaluates parameters on the held-out rows; `batches` is 0 where the token dataset holds nothing out."""

    def __init__(self, config: RunConfig, mesh: Mesh, dataset: TokenDataset) -> None:
        self.batch_rows = config.batch_size // config.accumulation
        self.rows = HeldOut(config, dataset, self.batch_rows)
        self.batches = self.rows.batches
        self.sharding = batch_sharding(mesh)
        self.threads = config.data.threads
        self._evaluate = build_eval(config, mesh, dataset.sources)

    def __call__(self, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """(loss sums, target tokens), each float64 [num_sources]."""
        with make_loader(self.rows, self.batch_rows, self.sharding, threads=self.threads) as batches:
            sums = jax.device_get([self._evaluate(params, batch) for batch in batches])
        names = ("source_loss_sum", "source_target_tokens")
        loss, tokens = (np.sum([np.asarray(s[name], np.float64) for s in sums], axis=0) for name in names)
        return loss, tokens
