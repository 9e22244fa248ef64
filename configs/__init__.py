"""One Python file per run, each with `config() -> RunConfig`; `mixtures.py` holds what they share."""
