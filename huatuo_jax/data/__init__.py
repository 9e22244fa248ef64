"""From records to batches: what `huatuo-data` writes and `huatuo train` reads, so that both agree on it.

In the order of the way: `dialogue.py` (with `formats.py` and `tokenizers.py`), `token_store.py`, `priority.py`, `packing.py`,
`plan.py`, `rows.py`, `loader.py`. What must hold: only `loader.py` imports jax and grain.
"""
