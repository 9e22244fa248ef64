"""Text out of a trained model: conversations, answer files, recall, likelihoods.

Stands on `weights` (what is loaded) and `models` (what is computed). From the bottom up: `sampling.py` and `device.py` compute,
`requests.py` and `engine.py` hand out rows, `model.py` opens a model; `chat.py`, `batch.py`, `recall.py` and `scoring.py` ask it.
"""
