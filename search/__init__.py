"""The hyperparameter search: which candidate runs next, on what, and where the results come together.

The only room, besides the adapters in ``trainables``, that knows Ray Tune.
"""
