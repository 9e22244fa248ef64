"""One decoder for every supported family, its attention backends, positions and presets."""
