"""docs/methods.md: every block runs, and every method of it trains."""

from pathlib import Path

import pytest
import torch
from methods import G, Heads, Patches, autoencoder, plain_g
from pairs import same, weights
from small_runs import QUICK, SHAPE, pixels
from torch import nn

from fastgan import Trainer

DOC = Path(__file__).parents[1] / "docs" / "methods.md"
if not DOC.exists():
    pytest.skip("docs/ is part of a checkout only", allow_module_level=True)


@pytest.fixture(scope="module")
def names():
    blocks = [part.split("```")[0] for part in DOC.read_text().split("```python\n")[1:]]
    names = {}
    exec("\n".join(blocks), names)
    return names


def test_the_example_trains_and_draws_a_class(names):
    assert names["trainer"].step == 50 and names["sevens"].shape == (16, 1, 28, 28)
    assert names["trainer"].problem.conditioned[1]


class ToImage(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 1, 3, 1, 1)

    def forward(self, condition):
        return torch.tanh(self.body(condition))


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("AuxiliaryClassifier", lambda: (G(classes=10), Heads(classes=10)), {}),
        ("Information", lambda: (plain_g(28), Heads(classes=10, more=2)), {"latent_dim": "LATENT"}),
        ("Paired", lambda: (ToImage(), Patches()), {"latent_dim": None, "terms": "TERMS"}),
        ("BoundaryEquilibrium", lambda: (plain_g(), autoencoder()), {}),
    ],
)
def test_every_method_trains(names, name, make, options):
    torch.manual_seed(0)
    condition = torch.rand(50, *SHAPE) if name == "Paired" else torch.arange(50) % 10
    options = {key: names.get(value, value) for key, value in options.items()}
    trainer = Trainer(*make(), (pixels(), condition), method=names[name](), **{**QUICK, **options})
    before = weights(trainer.generator), weights(trainer.discriminator)
    trainer.fit(steps=10)
    assert not same(weights(trainer.generator), before[0])
    assert not same(weights(trainer.discriminator), before[1])
    line = trainer.history[-1]
    assert line["d_loss"] == line["d_loss"] and ("accuracy" in line) == (name[:3] == "Aux")
