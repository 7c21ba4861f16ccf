"""What theory says about a fine-tuning run, in numbers: one theorem a file, without torch.

Every result is a `Bound` with its units, assumptions and source (`perturbation` gives two). Arguments that are out of
range, infinite or of different lengths raise `SpecError`.
"""

from tunewise.theory.attention import attention_difference
from tunewise.theory.bound import MARKS, Bound, Mark
from tunewise.theory.information import information_bound, trained_parameters
from tunewise.theory.literal import literal_perturbation
from tunewise.theory.ntk import (
    excess_risk,
    nuclear_penalty,
    rank_for_existence,
    rank_for_generic_features,
    rank_without_spurious_minima,
)
from tunewise.theory.pac_bayes import hoeffding, pac_bayes
from tunewise.theory.perturbation import Perturbation, perturbation
from tunewise.theory.random_factor import random_factor_lower, random_factor_upper
from tunewise.theory.step_size import guaranteed_decrease, largest_safe_step

__all__ = [
    "MARKS",
    "Bound",
    "Mark",
    "Perturbation",
    "attention_difference",
    "excess_risk",
    "guaranteed_decrease",
    "hoeffding",
    "information_bound",
    "largest_safe_step",
    "literal_perturbation",
    "nuclear_penalty",
    "pac_bayes",
    "perturbation",
    "random_factor_lower",
    "random_factor_upper",
    "rank_for_existence",
    "rank_for_generic_features",
    "rank_without_spurious_minima",
    "trained_parameters",
]
