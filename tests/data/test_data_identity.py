"""Places and identities."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_kit import Listed, idx_bytes, noise, write, zipped
from torch.utils.data import TensorDataset

from fastgan import data
from fastgan.data import budget as budget_room
from fastgan.data.batch import tensors_of


def test_device_and_budget(caplog):
    opened = data.open(torch.from_numpy(noise(8, 4, 4)))
    assert opened.to("cpu") is opened and opened.nbytes == 128
    there = opened.to("meta")
    assert there.resident and there.samples.device.type == "meta"
    assert not caplog.records
    crossing = opened.to("meta", budget_bytes=127)
    assert len(caplog.records) == 1 and "batch by batch" in caplog.text
    assert crossing.samples.device.type == "cpu" and not crossing.resident
    assert crossing.batch_indices(0, 0, 4).device.type == "cpu"
    assert crossing.batch(0, 0, 4).images.device.type == "meta"
    assert crossing.to("meta") is crossing and len(caplog.records) == 1
    assert opened.to("meta", budget_bytes=128).resident


def test_default_budget_is_a_share_of_free_memory():
    budget = budget_room.default_budget(torch.device("cpu"))
    assert 1 << 20 < budget < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4
    assert budget_room.default_budget(torch.device("meta")) == 2 << 30


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [None, 0])
def test_cuda_batches_are_those_of_the_cpu(folder, budget):
    several = {"x": torch.randn(20, 6), "y": torch.arange(20), "z": torch.rand(20, 2)}
    for here in (data.open("digits"), data.open(folder, budget_bytes=0), data.open(several)):
        there = here.to("cuda", budget_bytes=budget)
        assert there.resident == (budget is None) and there.to("cuda") is there
        for update in (0, 1, 2, 9):
            batch, expected = there.batch(3, update, 4), here.batch(3, update, 4)
            assert torch.equal(batch.images.cpu(), expected.images) and batch.images.is_cuda
            found, wanted = (tuple(tensors_of(b.condition)) for b in (batch, expected))
            assert all(part.is_cuda for part in found) and len(found) == len(wanted) > 0
            assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted, strict=True))
        assert there.differs(here.identity()) is None
        here.close()
        there.close()


def test_identity_tells_data_apart():
    array = torch.from_numpy(noise(50, 4, 4))
    one = data.open(array).identity()
    assert one == data.open(array.clone()).identity()
    assert (one["count"], one["shape"], one["dtype"]) == (50, [1, 4, 4], "uint8")
    assert data.open(array).differs(one) is None
    # one byte of one image, not one of those that a sample would take
    changed = array.clone()
    changed[1, 3, 3] ^= 1
    for other in (changed, array[:49], array.reshape(50, 2, 8), array.float() / 255):
        message = data.open(other).differs(one)
        assert "data_changed=True" in message and "--data-changed" in message
        assert "\n" not in message
    assert data.open(array[:1]).identity()


def test_repr_and_log_names_are_for_people(folder):
    assert (
        repr(data.open("digits")) == "Data('digits', 5000 x (1, 28, 28), uint8 on cpu, 10 classes)"
    )
    assert "as needed" in repr(data.open(folder, budget_bytes=0))
    assert logging.getLogger("fastgan").level == logging.NOTSET


# ------------------------------------------------------------------- the same data again (12)


def test_renamed_folder_and_unpacked_archive_are_the_same_data(folder, tmp_path):
    one = data.open(folder).identity()
    assert data.open(zipped(folder, tmp_path / "other.zip")).differs(one) is None
    renamed = folder.rename(tmp_path / "renamed")
    assert data.open(renamed).differs(one) is None
    assert data.open(renamed, budget_bytes=0).differs(one) is None


def test_tensor_that_became_an_array_or_a_dataset_is_the_same_data():
    images, labels = torch.from_numpy(noise(40, 1, 4, 4)), torch.arange(40)
    one = data.open((images, labels)).identity()
    for source in (
        (images.numpy(), labels.numpy()),
        {"image": images, "label": labels},
        TensorDataset(images, labels),
        Listed(list(zip(images, labels.tolist(), strict=True))),
    ):
        assert data.open(source).differs(one) is None


class Generator(Listed):
    """A Dataset that augments with a generator of its own, as albumentations does."""

    def __init__(self, items):
        super().__init__(items)
        self.generator = np.random.default_rng()

    def __getitem__(self, index):
        return self.items[index] + self.generator.integers(0, 9, dtype=np.uint8)


def test_dataset_with_a_generator_of_its_own_compares_by_number_and_shape():
    arrays = list(noise(20, 4, 4) // 2)
    opened = data.open(Generator(arrays))
    one = opened.identity()
    assert one["checksum"] is None and one["whole"] is None
    assert opened.differs(one) is None
    assert data.open(Generator(arrays[::-1])).differs(one) is None
    assert "19 samples" in data.open(Generator(arrays[:19])).differs(one)
    assert "(1, 4, 3)" in data.open(Generator([a[:, :3] for a in arrays])).differs(one)
    # one that was taken for fixed, and now is said to augment
    fixed = data.open(Listed(arrays)).identity()
    assert data.open(Listed(arrays), augmented=True).differs(fixed) is None


def test_removed_damaged_file_differs_and_the_way_out_is_named(folder):
    one = data.open(folder).identity()
    (folder / "a" / "2.png").unlink()
    message = data.open(folder).differs(one)
    for word in ("8 samples", "9 samples", "data_changed=True", "--data-changed"):
        assert word in message


def test_changed_labels_are_changed_data(folder):
    images, labels = torch.from_numpy(noise(50, 4, 4)), torch.arange(50)
    one = data.open((images, labels)).identity()
    other = labels.clone()
    other[1] = 7
    assert "labels" in data.open((images, other)).differs(one)
    assert "int64[]" in data.open(images).differs(one)
    assert "float32" in data.open((images, labels.float())).differs(one)
    assert "float32[2]" in data.open({"x": images, "y": labels, "z": torch.rand(50, 2)}).differs(
        one
    )
    lazily = data.open(folder, budget_bytes=0).identity()
    (folder / "a").rename(folder / "c")
    assert "differ" in data.open(folder, budget_bytes=0).differs(lazily)


def test_identity_is_plain_and_survives_a_file():
    for source in ("digits", (torch.randn(9, 4), list(range(9)))):
        opened = data.open(source)
        one = opened.identity()
        assert set(one) >= {"name", "kind", "count", "shape", "dtype", "checksum"}
        assert opened.differs(json.loads(json.dumps(one))) is None
        assert opened.differs({**one, "shape": tuple(one["shape"])}) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda one: None,
        lambda one: "digits-5000x1x28x28-2f383c56",
        lambda one: {},
        lambda one: {**one, "shape": 3},
        lambda one: {**one, "count": "many"},
        lambda one: {**one, "whole": 5},
        lambda one: {**one, "whole": ["0"]},
        lambda one: {k: v for k, v in one.items() if k != "checksum"},
        lambda one: {**one, "checksum": float("nan")},
    ],
)
def test_damaged_identity_is_a_sentence(damage):
    opened = data.open(torch.from_numpy(noise(9, 4, 4)))
    message = opened.differs(damage(opened.identity()))
    assert "data_changed=True" in message and "\n" not in message


def test_copies_on_other_devices_are_the_same_data():
    opened = data.open("digits", image_size=14)
    there = opened.to("meta", budget_bytes=0)
    assert there.differs(opened.identity()) is None
    assert (there.source, there.options, there.classes, there.kind) == (
        opened.source,
        opened.options,
        opened.classes,
        opened.kind,
    )


# ------------------------------------------------------------------- to be opened again (21)


def test_source_reopens_from_another_directory(folder, tmp_path, monkeypatch):
    archive = zipped(folder, tmp_path / "photos.zip")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("photos", "./photos", "~/photos", Path("photos"), "photos.zip", archive):
        monkeypatch.chdir(tmp_path)
        opened = data.open(given, image_size=(4, 6), channels=1)
        assert os.path.isabs(opened.source) and opened.options["image_size"] == [4, 6]
        plain = json.loads(json.dumps([opened.source, opened.options]))
        monkeypatch.chdir(tmp_path / "elsewhere")
        again = data.open(plain[0], **plain[1])
        assert again.differs(opened.identity()) is None
        assert (again.source, again.options) == (opened.source, opened.options)


def test_root_is_found_again_from_another_directory(tmp_path, monkeypatch):
    write(tmp_path / "mine" / "train-images-idx3-ubyte", idx_bytes(noise(3, 28, 28)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in ("mine", "~/mine", Path("mine")):
        monkeypatch.chdir(tmp_path)
        opened = data.open("MNIST", root=root, download=False)
        assert opened.source == "mnist"
        assert opened.options == {"root": str(tmp_path / "mine"), "download": False}
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert data.open(opened.source, **opened.options).differs(opened.identity()) is None


def test_what_lives_in_this_process_only_has_no_source():
    for source in (torch.zeros(3, 4), Listed([noise(4, 4)])):
        assert data.open(source).source is None and data.open(source).options == {}
    assert data.open().source == "digits"
