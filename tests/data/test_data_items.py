"""A user's own Datasets."""

from __future__ import annotations

import random as python_random

import numpy as np
import pytest
import torch
from data_kit import Listed, noise, refused
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from fastgan import data


class Augmented(Dataset):
    """A Dataset that draws from all three generators each time an item is read."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        draws = [torch.rand(()).item(), np.random.rand(), python_random.random()]
        return torch.full((1, 2, 2), index / 40) * sum(draws) / 3 - 0.01, index


@pytest.mark.parametrize(
    "wrap",
    [
        lambda array: array,
        lambda array: (torch.from_numpy(array).permute(2, 0, 1), 3),
        lambda array: [Image.fromarray(array), 3, "more"],
        lambda array: (torch.from_numpy(array), 3),
    ],
)
def test_datasets_of_any_kind_of_image(wrap):
    arrays = noise(20, 6, 5, 3)
    opened = data.open(Listed([wrap(a) for a in arrays]))
    assert opened.name == "Listed" and opened.shape == (3, 6, 5) and opened.resident
    assert np.array_equal(opened.samples.permute(0, 2, 3, 1).numpy(), arrays)


def test_tensor_dataset_of_floats():
    floats = torch.rand(30, 1, 4, 4) * 2 - 1
    opened = data.open(TensorDataset(floats, torch.arange(30)))
    assert opened.dtype == torch.float32 and torch.equal(opened.samples, floats)


def test_datasets_that_do_not_fit_the_frame():
    good = noise(6, 5)
    refused("empty", source=Listed([]))
    refused("no length", source=type("Endless", (), {"__getitem__": lambda s, i: good})())
    refused("Stream", source=type("Stream", (IterableDataset,), {"__iter__": lambda s: iter(())})())
    refused("item 1", "(1, 6, 4)", "image_size", source=Listed([good, noise(6, 4)]))
    refused("item 30", "image_size", source=Listed([good] * 30 + [noise(6, 4)]))
    refused("item 1", "dtype", source=Listed([good, good / 255.0]))
    refused("item 0", "'label'", "'image'", source=Listed([{"label": 1}]))
    refused("item 0", "str", source=Listed(["a.png"]))
    refused("item 0", "float", source=Listed([0.5, 0.25]))
    refused("item 0", "()", "[1]", source=Listed([np.zeros(())]))
    refused("item 30", "NaN", source=Listed([good / 255.0] * 30 + [good * np.nan]))
    refused("Listed", "[-1, 1]", source=Listed([good / 255.0] * 30 + [good - 9.0]))
    # one that is not among those looked at before
    many = [good / 255.0] * 600
    many[1] = good - 9.0
    refused("item 1", "leave the range", source=Listed(many))
    refused("(0, 255)", source=Listed([good]), value_range=(0, 1))
    assert data.open(Listed([good, noise(6, 4)]), image_size=4).shape == (1, 4, 4)


def test_augmenting_dataset_is_read_anew_and_repeats(caplog):
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate())
    opened = data.open(Augmented())
    assert opened.samples is None and opened.dataset is not None
    assert len(caplog.records) == 1 and "workers=N" in caplog.text
    runs = [[opened.batch(5, u, 16).images for u in range(6)] for _ in range(2)]
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == python_random.getstate()
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
    # item by item, the second epoch drew other numbers than the first
    first, second = torch.cat(runs[0][:3]), torch.cat(runs[0][3:])
    order = [torch.cat([opened.batch_indices(5, u, 16) for u in e]) for e in ((0, 1, 2), (3, 4, 5))]
    changed = first[order[0].argsort()] != second[order[1].argsort()]
    assert bool(changed[1:].all())
    assert opened.identity() == data.open(Augmented()).identity()
    workers = data.open(Augmented(), workers=2)
    assert torch.equal(workers.batch(5, 4, 16).images, runs[0][4])
    workers.close()
