"""What the tests of the data room share."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

from fastgan import data
from fastgan.data import DataError

ASSET = Path(data.__file__).parents[1] / "_assets" / "digits-images-idx3-ubyte.gz"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)


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
    return struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.tobytes()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def png(array, mode=None, form="PNG", **options):
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, form, **options)
    return file.getvalue()


def zipped(root, target):
    with zipfile.ZipFile(target, "w") as archive:
        for path in root.rglob("*"):
            archive.write(path, path.relative_to(root))
        archive.writestr("__MACOSX/a/._0.png", b"junk")
    return target


class Listed(Dataset):
    """A Dataset over a list."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]
