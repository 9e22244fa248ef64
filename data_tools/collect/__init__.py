"""From raw corpora to clean, de-duplicated passages of one domain: extract, segment, clean, de-duplicate, decontaminate.

Read `pipeline.py` first: its `collect` is the story. The other rooms know nothing of workers or folders of other runs.
"""
