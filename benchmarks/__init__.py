"""Side-by-side measurements; each module prints its table, and RESULTS.md keeps the figures. `make bench` runs most of them."""
