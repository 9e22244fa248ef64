"""Held-out rows and parameters in, loss sums per source out."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from huatuo_jax.config import RunConfig
from huatuo_jax.data.loader import make_loader
from huatuo_jax.data.rows import HoldoutRows
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.sharding import batch_sharding
from huatuo_jax.training.step import build_eval


class Evaluator:
    """Evaluates parameters on the held-out rows; `batches` is 0 where the token dataset holds nothing out."""

    def __init__(self, config: RunConfig, mesh: Mesh, dataset: TokenDataset) -> None:
        self.batch_rows = config.batch_size // config.accumulation
        held = [source for source in dataset.sources if dataset.count(source, "holdout")]
        self.rows = HoldoutRows(dataset, held, config.data.sequence_length, config.logging.eval_rows, multiple=self.batch_rows)
        self.batches = len(self.rows) // self.batch_rows
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
