"""Modelling files in torch that `hf_write.py` copies into exported Baichuan folders, for transformers to run.

What must hold: nothing here is imported by huatuo-jax, and nothing here imports it, because the folder travels alone.
"""
