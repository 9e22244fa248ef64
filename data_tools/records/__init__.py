"""Records: the layouts of JSON that people have, the import, and the unified dataset (TFDS, text)."""
