"""Small tables, and synthesizers that learn them in a moment; skips where pandas is missing."""

import pytest
import torch

from fastgan import random
from fastgan.tabular import Synthesizer

pandas = pytest.importorskip("pandas")
SMALL = {"batch_size": 40, "pac": 4, "embedding_dim": 6, "width": 8, "engine": "eager"}


def table(n=90):
    z = random.normal(1, 200, 0, n).double()
    where = torch.arange(n)
    return pandas.DataFrame(
        {
            "x": torch.where(where % 2 == 0, z, 10 + z).numpy().round(3),
            "kind": ["abc"[i % 3] for i in range(n)],
            "n": (where % 23).numpy(),
            "y": (where % 2).numpy(),
        }
    )


def fitted(epochs=3, **settings):
    return Synthesizer(epochs, **{**SMALL, **settings}).fit(table())
