"""What belongs to a sample: labels and other conditions, from every reader."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from data_kit import DEBIAN, Listed, idx_bytes, needs_debian, noise, png, refused, write, zipped
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from fastgan import data
from fastgan.data import Batch
from fastgan.data.batch import map_condition


def follows(opened, of_sample):
    """Whether each batch's condition is that of its samples: of_sample(image) -> condition."""
    for update in range(opened.batches_per_epoch(4)):
        batch = opened.batch(7, update, 4)
        assert isinstance(batch, Batch)
        for i, image in enumerate(batch.images):
            found = map_condition(lambda part, i=i: part[i].tolist(), batch.condition)
            assert found == of_sample(image)


# ------------------------------------------------------------------------------------- named sets


def test_digits_have_their_labels():
    digits = data.open("digits")
    assert digits.classes == tuple("0123456789") and digits.conditional
    assert digits.condition.dtype == torch.int64
    assert torch.bincount(digits.condition).tolist() == [500] * 10
    batch = digits.batch(3, 5, 64)
    indices = digits.batch_indices(3, 5, 64)
    assert torch.equal(batch.condition, digits.condition[indices])
    # the classes are those of the pictures: a nearest mean tells most of them apart
    images = digits.samples.float().flatten(1)
    means = torch.stack([images[digits.condition == c].mean(0) for c in range(10)])
    assert (torch.cdist(images, means).argmin(1) == digits.condition).float().mean() > 0.75


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["train-labels-idx1-ubyte", "train-labels.idx1-ubyte"])
def test_labels_of_mnist_lie_beside_its_images(tmp_path, name, packed, caplog):
    labels = np.array([5, 0, 9], np.uint8)
    images = name.replace("labels", "images").replace("idx1", "idx3")
    write(tmp_path / images, idx_bytes(noise(3, 28, 28)))
    content = idx_bytes(labels, 0x801)
    path = tmp_path / (f"{name}.gz" if packed else name)
    write(path, gzip.compress(content) if packed else content)
    opened = data.open("mnist", root=tmp_path)
    assert opened.condition.tolist() == [5, 0, 9] and opened.classes == tuple("0123456789")
    assert not caplog.records


def test_missing_labels_are_told_once(tmp_path, caplog):
    write(tmp_path / "train-images-idx3-ubyte", idx_bytes(noise(3, 28, 28)))
    opened = data.open("mnist", root=tmp_path)
    assert opened.condition is None and opened.classes is None and not opened.conditional
    assert opened.batch(0, 0, 2).condition is None
    assert len(caplog.records) == 1 and "labels are missing" in caplog.text
    assert "labels are missing" in opened.origin


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (idx_bytes(np.zeros(2, np.uint8), 0x801), "2 labels"),
        (idx_bytes(np.full(3, 10, np.uint8), 0x801), "to 10"),
        (idx_bytes(np.zeros(3, np.uint8), 0x801)[:-1], "too short"),
        (idx_bytes(noise(3, 28, 28)), "holds images"),
        (b"junk", "4 bytes"),
    ],
)
def test_damaged_labels_are_named(tmp_path, content, word):
    write(tmp_path / "train-images-idx3-ubyte", idx_bytes(noise(3, 28, 28)))
    path = write(tmp_path / "train-labels-idx1-ubyte", content)
    refused(path, word, source="mnist", root=tmp_path)


@needs_debian
def test_fashion_mnist_of_debian_has_its_labels():
    opened = data.open("fashion-mnist", root=DEBIAN)
    assert torch.bincount(opened.condition).tolist() == [6000] * 10
    assert opened.classes[9] == "Ankle boot" and opened.condition[0] == 9


def cifar(folder, labels):
    rows = noise(len(labels), 3072)
    for i, own in enumerate(labels):
        batch = {b"data": rows[i : i + 1]}
        if own is not None:
            batch[b"labels"] = own
        write(folder / f"cifar-10-batches-py/data_batch_{i + 1}", pickle.dumps(batch, protocol=2))


def test_cifar_has_its_labels(tmp_path, caplog):
    cifar(tmp_path, [[3], [1], [4], [1], [9]])
    opened = data.open("cifar10", root=tmp_path)
    assert opened.condition.tolist() == [3, 1, 4, 1, 9] and opened.condition.dtype == torch.int64
    assert opened.classes[3] == "cat" and len(opened.classes) == 10 and not caplog.records
    cifar(tmp_path, [[3], None, [4], [1], [9]])
    assert data.open("cifar10", root=tmp_path).condition is None
    assert "labels are missing" in caplog.text


@pytest.mark.parametrize("labels", [[1, 2], [10], [-1], ["cat"], 3, [True]])
def test_damaged_cifar_labels_are_named(tmp_path, labels):
    cifar(tmp_path, [labels, [1], [4], [1], [9]])
    refused("data_batch_1", "labels", "again", source="cifar10", root=tmp_path)


# ----------------------------------------------------------------------------- folders and zips


def painted(root, classes):
    """Three images of one grey value in each directory; the value is ten times the class."""
    for number, name in enumerate(classes):
        for i in range(3):
            write(root / name / f"{i}.png", png(np.full((4, 4), number * 10, np.uint8)))
    return root


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("archive", [False, True])
def test_directories_are_classes_and_travel_with_the_batch(tmp_path, budget, workers, archive):
    root = painted(tmp_path / "set", ["ant", "bee", "cat"])
    source = zipped(root, tmp_path / "set.zip") if archive else root
    opened = data.open(source, budget_bytes=budget, workers=workers)
    assert opened.classes == ("ant", "bee", "cat") and "3 classes" in opened.origin
    assert (opened.condition is None) == (budget == 0) and opened.conditional
    if budget is None:
        assert opened.condition.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    follows(opened, lambda image: round((float(image[0, 0, 0]) + 1) * 127.5) // 10)
    opened.close()


def test_classes_below_the_one_folder_of_an_archive(tmp_path):
    painted(tmp_path / "outer" / "pets", ["ant", "bee/small", "bee/big"])
    opened = data.open(zipped(tmp_path / "outer", tmp_path / "pets.zip"))
    assert opened.classes == ("ant", "bee") and opened.condition.tolist() == [0] * 3 + [1] * 6
    assert data.open(tmp_path / "outer").classes == ("ant", "bee")


def test_flat_and_mixed_folders_have_no_classes(tmp_path):
    flat = painted(tmp_path / "a", ["one"])
    for source in (flat, flat / "one"):
        opened = data.open(source)
        assert opened.classes is None and opened.condition is None
    mixed = painted(tmp_path / "b", ["one", "two"])
    write(mixed / "loose.png", png(np.zeros((4, 4), np.uint8)))
    opened = data.open(mixed)
    assert opened.condition is None and "no classes, as not each" in opened.origin


# ------------------------------------------------------------------------------ tuples and dicts


def test_tuple_of_tensors_is_samples_and_conditions():
    images, labels = torch.from_numpy(noise(10, 1, 4, 4)), torch.arange(10)
    for y in (labels, labels.numpy(), labels.tolist(), labels.to(torch.uint8), tuple(range(10))):
        opened = data.open((images, y))
        assert opened.condition.dtype == torch.int64 and opened.condition.tolist() == list(
            range(10)
        )
        assert opened.samples.data_ptr() == images.data_ptr()
        follows(opened, lambda image: position(images, image))
    several = data.open((images, labels, torch.rand(10, 3).double()))
    assert isinstance(several.condition, tuple) and several.condition[1].dtype == torch.float32
    assert data.open(Batch(images, None)).condition is None
    assert torch.equal(data.open((images,)).samples, images)
    assert torch.equal(data.open(Batch(images, labels)).condition, labels)


def position(images, image):
    signed = images.float() * (2 / 255) - 1
    return int((signed == image).flatten(1).all(1).nonzero()[0])


@pytest.mark.parametrize(
    ("key", "others"),
    [("image", ["label"]), ("x", ["y"]), ("pixel_values", ["labels"]), ("Data", ["a"])],
)
def test_dict_of_tensors_has_its_sample_under_a_known_name(key, others):
    images = torch.from_numpy(noise(6, 1, 4, 4))
    opened = data.open({**{name: torch.arange(6) for name in others}, key: images})
    assert torch.equal(opened.samples, images) and opened.condition.tolist() == list(range(6))
    items = [{**dict.fromkeys(others, i), key: images[i]} for i in range(6)]
    opened = data.open(Listed(items))
    assert torch.equal(opened.samples, images) and opened.condition.tolist() == list(range(6))


def test_dict_without_a_known_name_takes_its_first_tensor_and_says_so(caplog):
    opened = data.open({"names": list("abc"), "rows": torch.zeros(3, 5), "n": [1, 2, 3]})
    assert opened.shape == (5,) and opened.condition.tolist() == [1, 2, 3]
    assert "'rows'" in caplog.text and "names (list)" in caplog.text
    caplog.clear()
    opened = data.open(Listed([{"rows": torch.zeros(5), "n": 1}] * 3))
    assert opened.shape == (5,) and caplog.text.count("'rows'") == 1


def test_several_conditions_are_a_dict_by_their_names():
    source = {"image": torch.zeros(6, 4), "label": range(6), "pose": np.ones((6, 2))}
    source["label"] = list(source["label"])
    opened = data.open(source)
    assert set(opened.condition) == {"label", "pose"}
    assert opened.condition["pose"].dtype == torch.float32
    batch = opened.batch(0, 0, 4)
    assert batch.condition["label"].shape == (4,) and batch.condition["pose"].shape == (4, 2)
    items = [{k: v[i] for k, v in source.items()} for i in range(6)]
    again = data.open(Listed(items))
    assert again.differs(opened.identity()) is None


def test_tensors_of_unlike_number_are_refused():
    refused("10 samples", "(9,)", source=(torch.zeros(10, 4), torch.arange(9)))
    refused("10 samples", "'label'", source={"x": torch.zeros(10, 4), "label": 3})


# -------------------------------------------------------------------------------------- Datasets


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("workers", [0, 2])
def test_conditions_of_a_dataset_travel_with_its_samples(budget, workers):
    items = [
        (torch.full((1, 2, 2), i / 40), i, {"pose": [i / 4, 0.5], "flip": i % 2 == 0})
        for i in range(11)
    ]
    opened = data.open(Listed(items), budget_bytes=budget, workers=workers, value_range=(0, 1))

    def of_sample(image):
        i = round((float(image[0, 0, 0]) + 1) * 20)
        return (i, {"pose": [i / 4, 0.5], "flip": i % 2 == 0})

    follows(opened, of_sample)
    blank, batch = opened.blank(4), opened.batch(0, 0, 4)
    for zeros, real in zip(
        (blank.images, blank.condition[0], *blank.condition[1].values()),
        (batch.images, batch.condition[0], *batch.condition[1].values()),
        strict=True,
    ):
        assert zeros.shape == real.shape and zeros.dtype == real.dtype and not zeros.any()
    opened.close()


def test_tensor_dataset_and_its_subset_have_labels():
    whole = TensorDataset(torch.rand(30, 12), torch.arange(30))
    assert data.open(whole).condition.tolist() == list(range(30))
    part = data.open(Subset(whole, [4, 2]), augmented=False)
    assert part.condition.tolist() == [4, 2]


def test_names_of_classes_are_taken_from_the_dataset():
    class Named(Listed):
        classes = ["ant", "bee"]

    named = Named([(noise(4, 4), 0), (noise(4, 4), 1)])
    assert data.open(named).classes == ("ant", "bee")
    assert data.open(Subset(named, [1]), augmented=False).classes == ("ant", "bee")
    assert data.open(Named([noise(4, 4)])).classes is None


def test_what_is_no_condition_is_told_once(caplog):
    opened = data.open(Listed([(noise(4, 4), 1, "a.png", None)] * 5), augmented=False)
    assert opened.condition.tolist() == [1] * 5
    assert len(caplog.records) == 1 and "2 (str)" in caplog.text
    caplog.clear()
    boxes = [(noise(4, 4), {"label": i, "boxes": np.zeros((i, 4))}) for i in range(5)]
    opened = data.open(Listed(boxes), augmented=False)
    assert opened.condition.tolist() == list(range(5))
    assert len(caplog.records) == 1 and "1.boxes" in caplog.text
    caplog.clear()
    assert data.open((torch.zeros(2, 4), ["cat", "dog"])).condition is None
    assert len(caplog.records) == 1 and "1 (list)" in caplog.text


def test_condition_of_another_form_is_named():
    items = [(noise(4, 4), 1)] * 600
    items[1] = (noise(4, 4), [1, 2])
    refused("item 1", "condition 1", "(2,)", source=Listed(items), augmented=False)
    items[1] = (noise(4, 4),)
    refused("item 1", "missing", source=Listed(items), augmented=False)


def test_images_as_conditions_keep_their_bytes():
    picture = noise(4, 6, 3)
    opened = data.open([(noise(4, 4), Image.fromarray(picture), torch.from_numpy(picture))] * 3)
    first, second = opened.batch(0, 0, 2).condition
    assert first.dtype == second.dtype == torch.uint8
    assert np.array_equal(first[0].permute(1, 2, 0).numpy(), picture)
    assert np.array_equal(second[0].numpy(), picture)


def test_conditions_move_with_the_samples():
    opened = data.open({"x": torch.zeros(6, 4), "a": torch.arange(6), "b": torch.rand(6, 2)})
    there = opened.to("meta")
    assert {part.device.type for part in there.condition.values()} == {"meta"}
    crossing = opened.to("meta", budget_bytes=0)
    assert crossing.condition["a"].device.type == "cpu"
    assert crossing.batch(0, 0, 2).condition["a"].device.type == "meta"
    assert opened.nbytes == 6 * (16 + 8 + 8)


def test_repr_tells_the_conditions(tmp_path):
    root = painted(tmp_path / "set", ["ant", "bee"])
    assert "2 classes" in repr(data.open(root))
    assert "condition int64[]" in repr(data.open((torch.zeros(3, 4), [1, 2, 3])))
    assert "condition" not in repr(data.open(torch.zeros(3, 4)))
    assert Path(data.open(root).source) == root
