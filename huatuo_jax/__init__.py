"""huatuo-jax: one-stage domain adaptation of language models in JAX (a reimplementation of HuatuoGPT-II).

Training, models, weights and inference; what prepares data is in `data_tools`. Next to read: docs/architecture.md, which follows
one record to a gradient, one checkpoint to a Hugging Face folder, and one document to a pair.
"""

__version__ = "0.1.0"
