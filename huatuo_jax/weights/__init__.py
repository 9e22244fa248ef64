"""Weights on disk and on their way: checkpoints of ours, Hugging Face folders, and how one becomes the other.

open.py         a path → a stored model: its config, tokenizer, dialogue format, and its weights where they are asked for
checkpoint.py   our checkpoints: layout, facts, verified arrays            load.py      weights onto devices
hf_names.py     our parameters ↔ their tensors, the one table              hf_config.py   config.json ↔ our config
hf_read.py      weight files of a folder                                   base.py      a folder becomes a base
hf_write.py     a checkpoint becomes a folder, with hf_tokenizer.py and card.py
compare.py      do two models predict the same?
"""
