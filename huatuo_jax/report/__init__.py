"""A run as pictures: `plots/*.png` and one self-contained `report.html` in its directory (`huatuo report`).

After training, or during it. Start with `run_page.py`; `style.py` is the look that `data_tools` shares.
"""
