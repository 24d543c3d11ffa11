"""Synthetic tables: learned from one, and sampled."""

from fastgan.games import TableMethod
from fastgan.tabular.runs import evaluate_run, rows, sample_run
from fastgan.tabular.synthesizer import Synthesizer

__all__ = ["Synthesizer", "TableMethod", "evaluate_run", "rows", "sample_run"]
