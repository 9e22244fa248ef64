"""Raw corpora in, clean and de-duplicated passages of one domain out: extract, segment, clean, de-duplicate, decontaminate.

The step modules are pure functions of text and need no engine; `pipeline` runs them shard by shard.
"""
