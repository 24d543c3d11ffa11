"""Pairs of pictures, and data that can only be gone through."""

import io
import tarfile

import numpy as np
import pytest
import torch
from data_kit import noise, png, refused, write
from PIL import Image

from fastgan import data


def floats(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1).float() * 2 / 255 - 1


def folders(root, names=("a.png", "sub/b.png", "c.png")):
    found = {}
    for k, side in enumerate("AB"):
        for i, name in enumerate(names):
            found[side, name] = noise(6, 4, 3, seed=10 * k + i)
            write(root / side / name, png(found[side, name]))
    return found


def test_folders_are_paired_by_the_names_of_their_files(tmp_path):
    found = folders(tmp_path)
    opened = data.open(tmp_path, pairs="A:B")
    assert len(opened) == 3 and opened.shape == (3, 6, 4) and opened.options == {"pairs": "A:B"}
    assert opened.samples.dtype == torch.uint8 and opened.condition.dtype == torch.float32
    for i, name in enumerate(("a.png", "c.png", "sub/b.png")):
        assert torch.equal(opened.samples[i], torch.from_numpy(found["B", name]).permute(2, 0, 1))
        torch.testing.assert_close(opened.condition[i], floats(found["A", name]))
    streamed = data.open(tmp_path, pairs="A:B", budget_bytes=0, workers=0)
    a, b = opened.batch(0, 1, 2), streamed.batch(0, 1, 2)
    assert torch.equal(a.images, b.images) and torch.equal(a.condition, b.condition)
    back = data.open(tmp_path, pairs="B:A")
    torch.testing.assert_close(back.condition[0], floats(found["B", "a.png"]))
    again = data.open(opened.source, **opened.options)
    assert opened.differs(again.identity()) is None
    assert opened.differs(back.identity()) is not None


def test_partners_may_be_missing_or_damaged(tmp_path, caplog):
    folders(tmp_path)
    write(tmp_path / "A" / "more.png", png(noise(6, 4, 3)))
    refused("1 pictures have no partner", "more.png", source=tmp_path, pairs="A:B")
    write(tmp_path / "B" / "c.png", b"no picture")
    refused("c.png", "skip_damaged=True", source=tmp_path, pairs="A:B")
    opened = data.open(tmp_path, pairs="A:B", skip_damaged=True)
    assert len(opened) == 2
    assert "2 pictures without a sound partner are left out" in caplog.text
    refused("no folder 'C'", source=tmp_path, pairs="A:C")


@pytest.mark.parametrize("side", ["left", "right"])
def test_pictures_that_show_both_are_cut_in_halves(tmp_path, side):
    pixels = noise(5, 8, 3)
    write(tmp_path / "x.png", png(pixels))
    opened = data.open(tmp_path, pairs=side)
    left, right = pixels[:, :4], pixels[:, 4:]
    given, target = (left, right) if side == "left" else (right, left)
    assert opened.shape == (3, 5, 4)
    assert torch.equal(opened.samples[0], torch.from_numpy(target.copy()).permute(2, 0, 1))
    torch.testing.assert_close(opened.condition[0], floats(given))
    assert data.open(tmp_path, pairs=side, image_size=3).shape == (3, 3, 3)
    write(tmp_path / "x.png", png(noise(5, 7, 3)))
    refused("7 wide", "image_size", source=tmp_path, pairs=side)


def test_a_function_makes_pairs_of_samples():
    def halved(sample):
        return sample[:, ::2, ::2], sample

    opened = data.open(torch.from_numpy(noise(9, 1, 6, 6)), pairs=halved)
    assert opened.shape == (1, 6, 6) and opened.blank(2).condition.shape == (2, 1, 3, 3)
    batch = opened.batch(0, 0, 4)
    torch.testing.assert_close(batch.condition, batch.images[:, :, ::2, ::2])
    named = data.open("digits", pairs=halved, image_size=8, budget_bytes=0)
    assert named.blank(1).condition.shape == (1, 1, 4, 4)
    vectors = data.open(torch.rand(8, 6), pairs=lambda row: (row[:2], row[2:]))
    assert vectors.shape == (4,) and vectors.condition.shape == (8, 2)
    refused("gave a Tensor for sample 0", source=torch.rand(8, 6), pairs=lambda row: row)


def test_what_pairs_cannot_be_is_said(tmp_path):
    refused("pairs='up'", "'A:B'", source=tmp_path, pairs="up")
    refused("pairs='left'", "no folder or zip", source="digits", pairs="left")
    refused("pairs=", "no folder or zip", source=torch.rand(4, 3), pairs="A:B")


# What can only be gone through


def test_a_stream_is_read_once(caplog):
    class Stream(torch.utils.data.IterableDataset):
        reads = 0

        def __iter__(self):
            Stream.reads += 1
            for i in range(5):
                yield {"__key__": str(i), "png": Image.fromarray(noise(4, 4, seed=i)), "cls": i}

    opened = data.open(Stream())
    assert Stream.reads == 1 and len(opened) == 5 and opened.shape == (1, 4, 4)
    assert opened.condition.tolist() == [0, 1, 2, 3, 4]
    assert "its 5 items are read once" in caplog.text
    refused("items take more than", source=Stream(), budget_bytes=45)
    refused("gave no item", source=(x for x in ()))
    generated = data.open(torch.rand(3) for _ in range(4))
    assert len(generated) == 4 and generated.kind == "vector"


def test_webdataset(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(6):
            for name, content in (("png", png(noise(4, 4, seed=i))), ("cls", str(i % 2).encode())):
                about = tarfile.TarInfo(f"{i:03d}.{name}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    shards = str(tmp_path / "a.tar")

    def opened(*ways):
        source = webdataset.WebDataset(shards, shardshuffle=False)
        for way, arguments in ways:
            source = getattr(source, way)(*arguments)
        return source

    for ways in (
        [("decode", ["pil"])],
        [("decode", ["pil"]), ("to_tuple", ["png", "cls"])],
    ):
        found = data.open(opened(*ways))
        assert len(found) == 6 and found.condition.tolist() == [0, 1, 0, 1, 0, 1]
    refused(".decode('pil')", source=opened())


def test_hugging_face():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )
    rows = {
        "image": [Image.fromarray(noise(4, 4, seed=i)) for i in range(5)],
        "label": [0, 1, 1, 0, 1],
        "text": ["x"] * 5,
    }
    found = datasets.Dataset.from_dict(rows, features=features)
    opened = data.open(found, augmented=False)
    assert opened.classes == ("cat", "dog") and opened.condition.tolist() == rows["label"]
    assert np.array_equal(opened.samples[3, 0].numpy(), noise(4, 4, seed=3))
    streamed = data.open(found.to_iterable_dataset())
    assert torch.equal(streamed.samples, opened.samples)
