"""Synthetic tables: learned from one, and sampled."""

from fastgan.games import TableMethod
from fastgan.tabular.synthesizer import Synthesizer, evaluate_run, rows, sample_run

__all__ = ["Synthesizer", "TableMethod", "evaluate_run", "rows", "sample_run"]
