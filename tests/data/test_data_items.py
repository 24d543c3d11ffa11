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


# ------------------------------------------------------------------------ augmented or not (9)


class Rarely(Dataset):
    """A Dataset that changes one reading in `every`."""

    def __init__(self, count, every):
        self.count, self.every = count, every

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        flipped = torch.rand(()).item() < 1 / self.every
        return torch.full((1, 2, 2), 1.0 if flipped else index / self.count / 2 - 0.5)


@pytest.mark.parametrize("count", [40, 1000])
def test_dataset_that_augments_rarely_is_found_out(count):
    assert data.open(Rarely(count, 50)).dataset.random


def test_augmented_is_for_the_user_to_say(caplog):
    always, never = data.open(Augmented(), augmented=False), Listed([noise(4, 4)] * 5)
    assert always.resident and not caplog.records
    never = data.open(never, augmented=True)
    assert never.samples is None and never.dataset.random
    assert "augmented=False" in caplog.text
    assert len(data.open(Rarely(40, 1e9), augmented=True).batch(0, 0, 4).images) == 4
    for wrong in ("yes", 2):
        refused("augmented", "True, False or None", source=Listed([noise(4, 4)]), augmented=wrong)
    for source in ("digits", torch.zeros(3, 4)):
        refused("augmented=True", "same at each reading", source=source, augmented=True)
        assert data.open(source, augmented=False).resident


def test_what_was_concluded_of_a_dataset_is_said(caplog):
    opened = data.open(Rarely(1000, 1e9))
    assert opened.resident and "taken for fixed" in opened.origin
    assert len(caplog.records) == 1
    for word in ("256 of its 1000 items", "taken for fixed", "augmented=True"):
        assert word in caplog.text
    caplog.clear()
    assert "taken for fixed" in data.open(TensorDataset(torch.rand(9, 4))).origin
    assert data.open([torch.rand(4)] * 9).resident and not caplog.records


class RareTensors(TensorDataset):
    """Overrides reading, as a subclass that flips does."""

    def __getitem__(self, index):
        (sample,) = super().__getitem__(index)
        return sample.flip(-1) if torch.rand(()) < 1e-9 else sample


class RareList(list):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample.flip(-1) if torch.rand(()) < 1e-9 else sample


@pytest.mark.parametrize("source", [RareTensors(torch.rand(9, 4)), RareList([torch.rand(4)] * 9)])
def test_a_subclass_of_what_holds_its_samples_may_augment(source, caplog):
    data.open(source)
    assert len(caplog.records) == 1 and "augmented=True" in caplog.text


def test_augmented_labels_are_noticed():
    class Mixed(Listed):
        def __getitem__(self, index):
            return self.items[index], torch.rand(3)

    assert data.open(Mixed([noise(4, 4)] * 9)).dataset.random


# ------------------------------------------------------------------------- pictures of 16 bits (11)


def test_pictures_of_a_dataset_that_use_fewer_bits_are_not_black(caplog):
    deep = noise(20, 4, 4).astype(np.uint16) << 4
    deep[0, 0, 0] = 4095
    pictures = [Image.fromarray(one) for one in deep]
    opened = data.open(Listed(pictures), augmented=False)
    assert np.array_equal(opened.samples[:, 0].numpy(), deep >> 4)
    assert len(caplog.records) == 1 and "12-bit" in caplog.text and "value_range" in caplog.text
    opened = data.open(Listed(pictures), augmented=False, value_range=(0, 65535))
    assert np.array_equal(opened.samples[:, 0].numpy(), deep >> 8)
    refused("leave the range", source=Listed(pictures), value_range=(0, 1000))


def test_small_items_of_an_endless_stream_count_with_the_objects_that_they_are():
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                given.append(1)
                yield {"x": torch.zeros(2), "label": 3}

    given = []
    with pytest.raises(data.DataError, match="items take more than 1 MB"):
        data.open(Endless(), budget_bytes=1 << 20)
    assert len(given) < 1200


def test_items_of_lists_are_told_how_they_become_tensors():
    refused("with_format('torch')", source=[{"x": [0.5, 1.0], "label": 1}] * 3)
    refused("put the sample under 'image'", source=[{"x": "a", "label": 1}] * 3)
