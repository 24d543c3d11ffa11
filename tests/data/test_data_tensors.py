"""Tensors and arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_kit import Listed, noise, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, TensorDataset, WeightedRandomSampler

from fastgan import data


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 7, 6), (1, 7, 6)),
        ((5, 1, 7, 6), (1, 7, 6)),
        ((5, 3, 7, 6), (3, 7, 6)),
        ((5, 7, 6, 3), (3, 7, 6)),
        ((5, 7, 6, 1), (1, 7, 6)),
    ],
)
@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
def test_layouts(shape, expected, kind):
    array = noise(*shape)
    opened = data.open(kind(array))
    assert opened.shape == expected and len(opened) == 5
    assert opened.samples.is_contiguous() and opened.dtype == torch.uint8
    view = array if array.ndim == 4 else array[:, None]
    view = view if opened.shape == view.shape[1:] else np.moveaxis(view, 3, 1)
    assert np.array_equal(opened.samples.numpy(), view)


def test_uint8_tensor_is_shared():
    tensor = torch.from_numpy(noise(5, 1, 4, 4))
    assert data.open(tensor).samples.data_ptr() == tensor.data_ptr()


def test_an_array_that_is_a_file_is_not_copied(tmp_path, recwarn):
    for images in (noise(5, 1, 4, 4), noise(5, 4, 4), np.zeros((5, 7), np.float32)):
        np.save(tmp_path / "images.npy", images)
        mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
        for view in (mapped, np.asarray(mapped)[1:]):
            samples = data.open(view).samples
            assert samples.data_ptr() == view.ctypes.data
            assert np.array_equal(samples.numpy().reshape(view.shape), view)
    assert not recwarn.list


def test_odd_arrays_are_taken(recwarn):
    array = noise(5, 8, 8)
    fixed = array.copy()
    fixed.flags.writeable = False
    flipped = array[::-1, :, ::-1]
    assert np.array_equal(data.open(fixed).samples[:, 0].numpy(), array)
    assert np.array_equal(data.open(flipped).samples[:, 0].numpy(), flipped)
    foreign = (array / 255 * 2 - 1).astype(">f4")
    assert np.allclose(data.open(foreign).samples[:, 0].numpy(), foreign)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (torch.zeros(5), ["(5,)", "[N, 1]"]),
        (torch.zeros(()), ["()", "[N, 1]"]),
        (torch.zeros(4, 5, 6, 7, dtype=torch.uint8), ["no side of 1 or 3", "layout=", "kind="]),
        (torch.zeros(4, 3, 6, 3), ["either side", "layout='NCHW'", "layout='NHWC'"]),
        (torch.zeros(4, 1, 1, 3), ["either side", "layout='NCHW'", "layout='NHWC'"]),
        (torch.zeros(0, 3, 6, 6), ["no samples"]),
        (torch.zeros(6, 0), ["no samples"]),
        (np.zeros((0, 6, 6), np.uint8), ["no samples"]),
        (torch.zeros(4, 6, 6).to_sparse(), ["sparse"]),
        (torch.zeros(4, 6, device="meta"), ["meta"]),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), ["nested"]),
        (np.ma.masked_equal(np.zeros((4, 6)), 0), ["masked", "filled"]),
        ("", ["empty"]),
        ("x" * 5000, ["cannot be a path"]),
        ("~nobody-of-this-name/x", ["cannot be a path"]),
        (torch.zeros(4, 6, 6, dtype=torch.int64), ["int64", "uint8"]),
        (torch.zeros(4, 6, 6, dtype=torch.bool), ["bool"]),
        (torch.zeros(4, 6, 6, dtype=torch.complex64), ["complex64"]),
        (np.array([["a"]]), ["value_range"]),
        (torch.full((4, 6, 6), float("nan")), ["NaN"]),
        (torch.full((4, 6, 6), float("inf")), ["infinite"]),
        (torch.full((4, 6, 6), 7.0), ["7", "value_range"]),
        (torch.full((4, 6, 6), -1.5), ["-1.5", "value_range"]),
        (torch.tensor([[[-0.5, 3.0], [0, 0]]]), ["-0.5 to 3", "kind="]),
        ({"x": 1}, ["dict", "'x'"]),
        ({}, ["dict", "nothing"]),
        (b"digits", ["bytes"]),
        (7, ["int", "digits"]),
        (None, ["NoneType"]),
    ],
)
def test_unusable_values_are_refused(source, words):
    refused(*words, source=source)


def test_ranges_of_floats(caplog):
    signed = torch.linspace(-1, 1, 32).reshape(2, 4, 4)
    assert torch.equal(data.open(signed).samples[:, 0], signed)
    assert not caplog.records
    unit = data.open((signed + 1) / 2)
    assert torch.allclose(unit.samples[:, 0], signed, atol=1e-6)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "[0, 1]" in caplog.text and "value_range" in caplog.text
    caplog.clear()
    bytes_like = data.open((signed + 1) * 127.5, value_range=(0, 255))
    assert torch.allclose(bytes_like.samples[:, 0], signed, atol=1e-6)
    assert torch.equal(data.open(signed.double(), value_range=(-1, 1)).samples[:, 0], signed)
    assert not caplog.records
    refused("leave the range", source=signed, value_range=(0, 1))


@settings(max_examples=50, deadline=None)
@given(
    low=st.floats(-1e3, 1e3),
    span=st.floats(1e-2, 1e3),
    values=st.lists(st.floats(0, 1), min_size=1, max_size=9),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_range_maps_into_minus_one_to_one(low, span, values, dtype):
    unit = torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)
    opened = data.open((unit * span + low).to(dtype), value_range=(low, low + span))
    assert float(opened.samples.abs().max()) <= 1
    # float32 resolves a value near 1e3 to 6e-5, of a span that may be 1e-2
    slack = 1e-5 + 4 * 2.0**-24 * (abs(low) + span) / span
    assert torch.allclose(opened.samples.double(), unit * 2 - 1, atol=slack)


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0,), 5, "ab", (0, float("nan"))])
def test_bad_value_range(value_range):
    refused("value_range", source=torch.rand(2, 4, 4), value_range=value_range)


def test_options_that_mean_nothing_are_refused(folder):
    floats = torch.rand(2, 4, 4) - 0.5
    refused("root", source="digits", root="x")
    refused("root", source=folder, root="x")
    refused("split", source=floats, split="test")
    refused("split", source="digits", split="test")
    refused("split", source="digits", split="validation")
    refused("(0, 255)", source="digits", value_range=(0, 1))
    refused("(0, 255)", source=folder, value_range=(0, 1))
    refused("(0, 255)", source=torch.zeros(2, 4, 4, dtype=torch.uint8), value_range=(0, 1))
    refused("interpolate", source=floats, image_size=8)
    refused("channels=2", source="digits", channels=2)
    for size in (0, -1, (4,), (4, 0), "ab"):
        refused("image_size", source="digits", image_size=size)
    refused("workers", source="digits", workers=-1)
    opened = data.open(floats)
    assert data.open(opened) is opened
    refused("already open", source=opened, image_size=8)


def test_named_and_tensor_images_take_size_and_channels():
    opened = data.open(torch.from_numpy(noise(3, 8, 8)), image_size=4, channels=3)
    assert opened.shape == (3, 4, 4)
    assert torch.equal(opened.samples[:, 0], opened.samples[:, 2])
    assert data.open("digits", image_size=28, channels=1).shape == (1, 28, 28)


# --------------------------------------------------------------------- not what it should be (45)


def test_data_loader_is_refused_with_the_way_out():
    loader = DataLoader(TensorDataset(torch.rand(9, 4)), batch_size=3)
    assert refused("DataLoader", "loader.dataset", "batch_size=3", source=loader)[-1] == "3"


def test_what_a_data_loader_does_besides_is_not_left_out_in_silence():
    rows = TensorDataset(torch.rand(9, 4))
    drawn, other = WeightedRandomSampler(torch.rand(9), 9), lambda items: torch.stack(items)
    batches = BatchSampler(drawn, 3, drop_last=True)
    for options, words in (
        ({"batch_size": 3, "sampler": drawn, "drop_last": True}, ["drop_last=True", "sampler"]),
        ({"batch_size": 3, "shuffle": True, "collate_fn": other}, ["batch_size=3; its collate_fn"]),
        ({"batch_sampler": batches}, ["batch_size=3, and drop_last=True; its batch_sampler would"]),
    ):
        refused("would not be used", *words, source=DataLoader(rows, **options))


def test_tables_and_rows_are_refused_with_the_way_out():
    class Table:
        def __getitem__(self, column):
            raise KeyError(column)

        def to_numpy(self):
            return np.zeros((3, 2))

    refused("Table", "to_numpy()", source=Table())
    refused("item 0", "torch.tensor(rows)", source=[[0.5, 1.5], [2.5, 3.5]])


def test_class_is_refused_with_the_way_out():
    refused("class Listed", "Listed(...)", source=Listed)
    refused("class TensorDataset", source=TensorDataset)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("fashoin-mnist", "fashion-mnist"),
        ("minst", "mnist"),
        ("cifar", "cifar10"),
        ("digit", "digits"),
    ],
)
def test_nearest_name_of_a_set_is_suggested(given, near):
    hint = refused("did you mean", source=given).split("did you mean")[1].split("?")[0]
    assert repr(near) in hint
