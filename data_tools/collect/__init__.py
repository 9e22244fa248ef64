"""From raw corpora to clean, de-duplicated passages of one domain: extract, segment, clean, de-duplicate, decontaminate.

Read `pipeline.py` first: its `collect` is the story.
"""
