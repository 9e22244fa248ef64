"""One decoder for every supported family, its attention backends and presets.

Between `sharding.py`, which says where arrays live, and `training`, `inference` and `weights`, which compute with them. Start
with `decoder.py`, which also makes the tree of its parameters; `cache.py` generates with it.
"""
