"""From the unified dataset to tokens: hold-out, build in parallel shards, tokenizer training.

Between `data_tools/records` (text) and `data_tools/planning` (rows). Start with `build.py`.
"""
