"""Side-by-side measurements; each module prints its table. `make bench` runs them all."""
