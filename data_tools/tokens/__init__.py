"""From the unified dataset to tokens: hold-out, build in parallel shards, tokenizer training."""
