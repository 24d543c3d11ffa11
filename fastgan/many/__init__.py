"""Many runs as one: members that differ in a seed, a setting or their data."""

from fastgan.many.ensemble import Ensemble
from fastgan.many.members import grid
from fastgan.many.results import Results

__all__ = ["Ensemble", "Results", "grid"]
