"""A learning rate for each method, found with the same number of trials for all of them, on validation alone.

One rate for all methods is no comparison of methods, and one rate each, picked by hand, is a comparison of hands.
"""

from tunewise.tuning.search import chosen_rates, tune, waiting_trials

__all__ = ["chosen_rates", "tune", "waiting_trials"]
