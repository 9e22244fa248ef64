"""The one look of all pictures and pages: colours."""

PALETTE = ("#0072B2", "#56B4E9", "#009E73", "#94C973", "#E69F00", "#F0C566", "#D55E00", "#CC79A7", "#5B4B8A", "#777777")
"""Colours of all pictures, in the order of a mixture's sources: Okabe and Ito's, which are told apart with any colour vision,
each beside a lighter one for the other language."""
