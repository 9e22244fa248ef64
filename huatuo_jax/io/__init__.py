"""Files that are never half-written, JSON lines whatever their compression, hashes, and tasks that can be resumed."""
