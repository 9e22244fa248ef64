"""Hugging Face folders in and out: one table of names (`names`), config.json (`config`), weights in (`load`) and out (`save`)."""
