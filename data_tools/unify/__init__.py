"""Unification: passages become instruction pairs."""
