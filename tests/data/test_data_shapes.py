"""Samples of any shape: what kind they are taken for, and their values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_kit import Listed, noise, refused
from hypothesis import given
from hypothesis import strategies as st

from fastgan import data


@pytest.mark.parametrize(
    ("shape", "sample", "kind"),
    [
        ((9, 12), (12,), "vector"),
        ((9, 1), (1,), "vector"),
        ((9, 1, 12), (1, 12), "signal"),
        ((9, 12, 1), (12, 1), "signal"),
        ((9, 1, 1), (1, 1), "signal"),
        ((9, 5, 7), (1, 5, 7), "image"),
        ((9, 3, 5, 7), (3, 5, 7), "image"),
        ((9, 1, 1, 1), (1, 1, 1), "image"),
        ((9, 4, 5, 7), (4, 5, 7), "tensor"),
        ((9, 2, 3, 4, 5), (2, 3, 4, 5), "tensor"),
    ],
)
def test_floats_of_any_shape_are_data(shape, sample, kind):
    values = torch.rand(shape) * 2 - 1
    one_by_one = Listed(list(values))
    for opened in (data.open(values), data.open(values.numpy()), data.open(one_by_one)):
        assert opened.shape == sample and opened.kind == kind and opened.dtype == torch.float32
        assert opened.drawable == (kind == "image")
        assert torch.equal(opened.samples, values.reshape(9, *sample))
        batch = opened.batch(0, 0, 4)
        expected = values.reshape(9, *sample)[opened.batch_indices(0, 0, 4)]
        assert torch.equal(batch.images, expected) and batch.condition is None


def test_floats_that_are_no_images_are_taken_as_they_are(caplog):
    values = torch.randn(1000, 12) * 5
    assert torch.equal(data.open(values).samples, values)
    assert torch.equal(data.open(values[:, None]).samples, values[:, None])
    assert torch.equal(data.open(values.double().numpy()).samples, values)
    positive = values.abs() / values.abs().max()
    assert torch.equal(data.open(positive).samples, positive)
    assert not caplog.records
    refused("NaN", source=values.log())
    refused("NaN or infinite", source=torch.full((3, 2), 1e300, dtype=torch.float64))


def test_value_range_maps_vectors_too():
    values = torch.rand(50, 12) * 10
    opened = data.open(values, value_range=(0, 10))
    assert torch.allclose(opened.samples, values / 5 - 1, atol=1e-6)
    refused("leave the range", source=values, value_range=(0, 1))


@pytest.mark.parametrize("shape", [(12,), (2, 12), (1, 4, 4), (2, 3, 4, 5)])
def test_bytes_of_any_shape_map_to_minus_one_to_one(shape):
    values = torch.from_numpy(noise(20, *shape))
    opened = data.open(values, kind=None if len(shape) != 2 else "signal")
    assert opened.shape == shape and opened.dtype == torch.uint8
    batch = opened.batch(0, 0, 20).images
    assert torch.equal(batch, values[opened.batch_indices(0, 0, 20)].float() * (2 / 255) - 1)
    refused("(0, 255)", source=values, kind="tensor", value_range=(0, 1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_layout_decides_where_either_side_could_be_the_channels(dtype):
    for shape, first, last in (
        ((5, 1, 1, 3), (1, 1, 3), (3, 1, 1)),
        ((5, 3, 6, 1), (3, 6, 1), (1, 3, 6)),
        ((5, 3, 6, 3), (3, 6, 3), (3, 3, 6)),
    ):
        values = torch.arange(5 * shape[1] * shape[2] * shape[3]).reshape(shape) % 2
        values = values.to(dtype)
        for source in (values, Listed(list(values))):
            refused("layout='NCHW'", "layout='NHWC'", source=source)
            assert data.open(source, layout="NCHW").shape == first
            opened = data.open(source, layout="NHWC")
            assert opened.shape == last and opened.kind == "image"
        bytes_or_signed = values if dtype == torch.uint8 else values * 2 - 1
        assert torch.equal(opened.samples, bytes_or_signed.permute(0, 3, 1, 2))


def test_layout_takes_other_numbers_of_channels():
    rgba = torch.from_numpy(noise(4, 6, 5, 4))
    refused("no side of 1 or 3", "layout=", "kind='tensor'", source=rgba)
    opened = data.open(rgba, layout="NHWC")
    assert opened.shape == (4, 6, 5) and not opened.drawable
    assert torch.equal(opened.samples, rgba.permute(0, 3, 1, 2))
    assert data.open(rgba, kind="tensor").shape == (6, 5, 4)


def test_kind_says_what_a_shape_does_not():
    values = torch.rand(9, 2, 12) * 2 - 1
    assert data.open(values).shape == (1, 2, 12)
    signal = data.open(values * 3, kind="signal")
    assert signal.shape == (2, 12) and signal.kind == "signal"
    assert torch.equal(signal.samples, values * 3)
    assert data.open(values[:, :1], kind="image").shape == (1, 1, 12)
    latents = torch.randn(9, 3, 8, 8) * 4
    refused("value_range", "kind='tensor'", source=latents)
    opened = data.open(latents, kind="tensor")
    assert torch.equal(opened.samples, latents) and not opened.drawable
    assert data.open(torch.from_numpy(noise(9, 2, 12)), kind="tensor").shape == (2, 12)


def test_kind_and_layout_that_do_not_fit_are_refused():
    images = torch.rand(4, 3, 6, 6)
    refused("kind='vector'", "[N, features]", source=images, kind="vector")
    refused("kind='signal'", "(4, 3, 6, 6)", source=images, kind="signal")
    refused("kind='image'", "(4, 5)", source=images[:, 0, 0, :5], kind="image")
    refused("layout='NHWC'", "(4, 6, 6)", source=images[:, 0], layout="NHWC")
    refused("layout='NCHW'", "kind 'tensor'", source=images, layout="NCHW", kind="tensor")
    refused("kind='imgae'", "did you mean 'image'", source=images, kind="imgae")
    refused("layout='NCWH'", "did you mean 'NCHW'", source=images, layout="NCWH")
    refused("kind='vector'", "'digits'", source="digits", kind="vector")
    refused("layout='NCHW'", "'digits'", source="digits", layout="NCHW")
    refused("item 0", "kind='vector'", source=Listed(list(images)), kind="vector")


def test_image_size_is_of_images_only():
    for options in ({"image_size": 8}, {"channels": 1}):
        refused("kind 'vector'", source=torch.randn(5, 12), **options)
        refused("kind 'vector'", source=Listed([torch.randn(12)]), **options)
        refused("kind 'signal'", source=torch.from_numpy(noise(5, 2, 9)), kind="signal", **options)


@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    in_bytes=st.booleans(),
    batch_size=st.integers(1, 6),
)
def test_kind_tensor_keeps_every_shape(shape, in_bytes, batch_size):
    values = torch.arange(int(np.prod(shape))).reshape(shape)
    values = values.to(torch.uint8) if in_bytes else values.float()
    opened = data.open(values, kind="tensor")
    assert opened.shape == tuple(shape[1:]) and opened.kind == "tensor"
    batch = opened.batch(3, 1, batch_size).images
    expected = values[opened.batch_indices(3, 1, batch_size)].float()
    assert torch.equal(batch, expected * (2 / 255) - 1 if in_bytes else expected)


def test_numbers_of_numpy_are_numbers(tmp_path):
    values = torch.from_numpy(noise(20, 8, 8))
    opened = data.open(
        values,
        image_size=np.int64(4),
        channels=np.int32(3),
        budget_bytes=np.float64(1e9),
        workers=np.int64(0),
    )
    assert opened.shape == (3, 4, 4)
    assert data.open(values, image_size=np.array([4, 6])).shape == (1, 4, 6)
    floats = values.float()
    ranged = data.open(floats, value_range=np.array([0, 255]))
    assert torch.equal(ranged.samples, data.open(floats, value_range=(0, 255)).samples)
    plain = opened.batch(3, 2, 7).images
    of_numpy = opened.batch(np.int64(3), np.uint8(2), np.int16(7)).images
    assert torch.equal(plain, of_numpy)
    assert opened.batches_per_epoch(np.int64(7)) == 3
    with pytest.raises(data.DataError, match="seed=0.5"):
        opened.batch(0.5, 0, 7)


def test_options_are_plain_values_where_numpy_gave_them():
    options = {"image_size": np.int64(14), "channels": np.int8(3)}
    opened = data.open("digits", **options)
    assert opened.options == {"image_size": 14, "channels": 3}
    assert all(type(value) is int for value in opened.options.values())


def test_default_dtype_of_the_user_changes_nothing():
    values, labels = np.random.default_rng(0).random((9, 4)), [0.5] * 9
    plain = data.open((values, labels)).batch(0, 0, 4)
    items = [(torch.rand(2, 6) * 2 - 1, 0.25) for _ in range(9)]
    torch.set_default_dtype(torch.float64)
    try:
        for opened in (
            data.open((values, labels)),
            data.open(Listed(items)),
            data.open("digits"),
            data.open(torch.tensor(values)),
        ):
            batch = opened.batch(0, 0, 4)
            assert batch.images.dtype == torch.float32
            assert batch.condition is None or batch.condition.dtype in (torch.float32, torch.int64)
            assert opened.blank(2).images.dtype == torch.float32
        again = data.open((values, labels)).batch(0, 0, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again.images, plain.images)
    assert torch.equal(again.condition, plain.condition)
