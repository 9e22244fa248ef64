"""A run as pictures: reads a run directory, writes `plots/*.png` and one self-contained `report.html`."""
