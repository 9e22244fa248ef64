"""From the sizes of a token dataset and a mixture to a row plan, and the mixing curve of either."""
