"""How good samples are: distances between sets, of features or of the samples themselves."""

from fastgan.metrics.features import Features, batches, features_of
from fastgan.metrics.quality import METRICS, draw_neighbours, evaluate, fakes
from fastgan.metrics.sets import manifold, nearest, sliced_wasserstein
from fastgan.metrics.small_classifier import Classifier, classifier
from fastgan.metrics.table_plots import plots_of_table
from fastgan.metrics.tables import TABLE_METRICS, evaluate_table

__all__ = [
    "METRICS",
    "TABLE_METRICS",
    "Classifier",
    "Features",
    "batches",
    "classifier",
    "draw_neighbours",
    "evaluate",
    "evaluate_table",
    "fakes",
    "features_of",
    "manifold",
    "nearest",
    "plots_of_table",
    "sliced_wasserstein",
]
