"""Everything between a dataset of preferences and a tuned adapter; `train.py` is the recipe."""
