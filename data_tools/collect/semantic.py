"""Passages of the same meaning, by embeddings: the optional last comparison of `duplicates.py`.

Vectors come from a local sentence-transformers folder or an OpenAI-compatible endpoint; k-means puts them into clusters, and
neighbours within a cluster count as copies from a cosine on. Vectors are costly, so each shard's are kept beside its passages.
Only the mechanics are tested here: with what quality it finds paraphrases depends on the embedder and is not measured.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.collect.reading import read_rows
from data_tools.collect.settings import Semantic
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.api_key import ApiKey
from huatuo_jax.io.files import read_json, write_json, write_npy

BATCH = 64
API_KEY = "EMBEDDINGS_API_KEY"


def open_embedder(settings: Semantic) -> "FolderEmbedder | EndpointEmbedder":
    """The embedder that the settings name: its `embed(texts)` gives float32 [n, d], in order.

    Raises:
      ConfigError: the folder is not there, or sentence-transformers is not installed.
    """
    if "://" in settings.embedder:
        return EndpointEmbedder(settings.embedder, settings.model)
    return FolderEmbedder(Path(settings.embedder))


class FolderEmbedder:
    """A local folder of sentence-transformers; nothing is downloaded."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder of a sentence-transformers model")
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError("a local embedder needs sentence-transformers; install it or give an endpoint's URL") from error
        self._model = SentenceTransformer(str(folder), local_files_only=True)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of the texts, in order."""
        return np.asarray(self._model.encode(list(texts), batch_size=BATCH, show_progress_bar=False), np.float32)


class EndpointEmbedder:
    """`POST {base}/embeddings` of an OpenAI-compatible server; the key, if it needs one, is in EMBEDDINGS_API_KEY."""

    def __init__(self, base: str, model: str, timeout: float = 120.0) -> None:
        self._url, self._model, self._timeout = base.rstrip("/") + "/embeddings", model, timeout
        self._key = ApiKey(os.environ.get(API_KEY, ""), API_KEY)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of the texts, in order.

        Raises:
          DataError: the endpoint does not answer with one vector per text.
        """
        parts = [self._request(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def _request(self, texts: Sequence[str]) -> np.ndarray:
        headers = {"Content-Type": "application/json"}
        if self._key.is_set:
            headers["Authorization"] = f"Bearer {self._key.reveal()}"
        body = json.dumps({"model": self._model, "input": list(texts)}).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self._url, body, headers), timeout=self._timeout) as answer:
                rows: Any = json.load(answer)["data"]
            # Servers may answer in another order than they were asked.
            vectors = np.array([row["embedding"] for row in sorted(rows, key=lambda row: row["index"])], np.float32)
        except (urllib.error.URLError, TimeoutError, ValueError, KeyError, TypeError) as error:
            reason = self._key.hide(str(error))
            raise DataError(f"{self._url} gives no embeddings ({reason}); the same command continues once it does") from error
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise DataError(f"{self._url} gave {len(vectors)} vectors for {len(texts)} texts; it is not an embeddings endpoint")
        return vectors


def passage_vectors(shards: Sequence[Path], dones: Sequence[dict[str, Any]], stays: np.ndarray, settings: Semantic) -> np.ndarray:
    """Embeddings by global number, float32 [n, d]; zero where a passage is removed already.

    Args:
      shards: folders of the first stage, with what its markers say in `dones`. stays: bool [n].
    """
    embedder, first = None, 0
    of_shards: list[np.ndarray] = []
    for folder, done in zip(shards, dones, strict=True):
        staying = stays[first : first + done["rows"]]
        first += done["rows"]
        path, about_path = folder / "vectors.npy", folder / "vectors.json"
        # What the vectors on disk were made from: they are reused only if nothing of it has changed.
        about = {
            "key": done["key"],
            "inputs": [entry["sha256"] for entry in done["inputs"]],
            "embedder": settings.embedder,
            "model": settings.model,
            "rows": np.flatnonzero(staying).tolist(),
        }
        if not path.exists() or not about_path.exists() or read_json(about_path) != about:
            embedder = embedder or open_embedder(settings)
            rows = zip(read_rows(folder / "passages.jsonl.zst"), staying, strict=True)
            write_npy(path, embedder.embed([row["text"] for row, stay in rows if stay]))
            write_json(about_path, about)
        of_shards.append(np.load(path))
    vectors = np.zeros((first, max(of_shard.shape[1] for of_shard in of_shards)), np.float32)
    # Without the shards that have no passage left: theirs are [0, 1].
    vectors[stays] = np.concatenate([of_shard for of_shard in of_shards if len(of_shard)])
    return vectors


def similar_meanings(vectors: np.ndarray, settings: Semantic) -> np.ndarray:
    """Pairs (preferred, other) within a cluster whose cosine reaches the threshold: int64 [m, 2].

    Args:
      vectors: float32 [n, d], in order of preference.

    Raises:
      ConfigError: faiss is not installed.
    """
    # Vectors of length 1: their products are cosines. A zero vector, of an empty answer, stays zero and is like none.
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    clusters = _clusters(unit.astype(np.float32), settings)
    pairs = [np.zeros((0, 2), np.int64)]
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        # Above the diagonal: each pair once, the preferred passage first.
        cosines = np.triu(unit[members] @ unit[members].T, 1)
        first, other = np.nonzero(cosines >= settings.threshold)
        pairs.append(np.stack([members[first], members[other]], axis=1))
    return np.concatenate(pairs)


def _clusters(unit: np.ndarray, settings: Semantic) -> np.ndarray:
    """Cluster of each vector, int64 [n]; spherical k-means of faiss, on one thread so that every run gives the same."""
    # Within clusters only, for n passages have n²/2 pairs: of a million, 5·10¹¹; in clusters of 1,000 they are 5·10⁸.
    count = max(1, len(unit) // settings.cluster)
    if count == 1:
        return np.zeros(len(unit), np.int64)
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("semantic de-duplication needs faiss-cpu; pip install 'huatuo-jax[collect]'") from error
    faiss.omp_set_num_threads(1)
    kmeans = faiss.Kmeans(unit.shape[1], count, niter=10, seed=settings.seed, spherical=True, verbose=False)
    kmeans.train(unit)
    return kmeans.index.search(unit, 1)[1][:, 0].astype(np.int64)
