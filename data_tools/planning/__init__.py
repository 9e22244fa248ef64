"""From the sizes of a token dataset and a mixture to a row plan, and ways to look at it before training.

Between `data_tools/tokens` and `huatuo train`. Start with `planner.py`.
"""
