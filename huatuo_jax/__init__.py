"""huatuo-jax: one-stage domain adaptation of language models in JAX (a reimplementation of HuatuoGPT-II)."""

__version__ = "0.1.0"
