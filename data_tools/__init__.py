"""From raw corpora to the row plan: the programs behind `huatuo-data`.

In the order of the way: `collect`, `unify`, `records`, `tokens`, `planning`; `cli` holds the commands. What must hold: they share
nothing but files, and import neither jax nor grain. Next to read: docs/architecture.md.
"""
