"""The faults that tests/mutants.py applies, one at a time."""

from helpers.mutants.method import METHOD
from helpers.mutants.mutant import Mutant
from helpers.mutants.rest import REST

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = (*METHOD, *REST)
