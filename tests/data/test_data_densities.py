"""Densities as data."""

from __future__ import annotations

import pytest
import torch

from fastgan import data
from fastgan.data import DataError
from fastgan.densities import DENSITIES


@pytest.mark.parametrize("name", DENSITIES)
def test_a_density_is_a_data_set_of_vectors_with_the_mode_as_condition(name):
    one = data.open(name)
    assert (one.name, one.source, one.kind, one.shape) == (name, name, "vector", (2,))
    assert len(one) == 50_000 and one.dtype == torch.float32 and one.plane and not one.drawable
    assert one.classes == DENSITIES[name].modes and name in data.NAMES
    batch = one.batch(1, 0, 8)
    assert batch.images.shape == (8, 2) and batch.condition.dtype == torch.int64
    again = data.open(name.upper())
    assert torch.equal(again.samples, one.samples) and one.differs(again.identity()) is None
    test = data.open(name, split="test")
    assert len(test) == 10_000 and "apart from" in test.origin
    assert not torch.isin(test.samples[:, 0], one.samples[:, 0]).all()


def test_its_numbers_are_those_of_every_machine():
    # Worked out in float64 and rounded once, so the sum has no room to differ.
    assert data.open("ring8").identity()["checksum"] == "7c10e364"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"image_size": 8},
            "image_size=8: 'ring8' is of vectors.* leave it out, or the model or preset that",
        ),
        ({"kind": "image"}, "kind='image': 'ring8' is of vectors, and not of images"),
        ({"value_range": (0, 1)}, "value_range=.*is of vectors"),
        ({"root": "."}, "is not looked up in a root"),
    ],
)
def test_options_of_images_are_refused(options, words):
    with pytest.raises(DataError, match=words):
        data.open("ring8", **options)
    assert data.open("ring8", kind="vector").kind == "vector"


def test_the_first_samples(tmp_path):
    one = data.open((torch.arange(12.0).view(6, 2), torch.arange(6)))
    first = one.first(4)
    assert torch.equal(first.images, torch.arange(8.0).view(4, 2))
    assert torch.equal(first.condition, torch.arange(4)) and len(one.first(9).images) == 6
    pixels = data.open(torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8))
    assert torch.equal(pixels.first(1).images, torch.tensor([[-1.0, 1.0]]))

    class Read(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return torch.full((2,), float(i)), i

    needed = data.open(Read(), budget_bytes=0, augmented=False)
    assert needed.samples is None
    state = torch.get_rng_state()
    first = needed.first(3)
    assert first.images[:, 0].tolist() == [0, 1, 2] and first.condition.tolist() == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), state)
    assert data.open(Read(), augmented=True).first(3) is None
