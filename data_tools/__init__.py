"""Corpora to unified pairs to token dataset to plan: the programs behind `huatuo-data`. Imports neither jax nor grain."""
