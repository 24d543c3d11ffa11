"""Folders and archives of image files."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from data_kit import noise, png, refused, write, zipped
from PIL import Image

from fastgan import data


def test_folder_and_zip_give_the_sorted_images(folder, tmp_path):
    expected = [noise(9, 6, 8, 3)[i] for i in (0, 2, 4, 6, 8, 1, 3, 5, 7)]
    for source in (folder, str(folder), zipped(folder, tmp_path / "photos.zip")):
        opened = data.open(source)
        assert opened.name == "photos" and opened.shape == (3, 6, 8) and len(opened) == 9
        assert np.array_equal(opened.samples.permute(0, 2, 3, 1).numpy(), expected)


def test_folder_follows_links_but_not_in_circles(folder):
    (folder / "a" / "circle").symlink_to(folder)
    (folder / "linked").symlink_to(
        write(folder.parent / "far" / "z.png", png(noise(6, 8, 3))).parent
    )
    assert len(data.open(folder)) == 10


def test_a_folder_that_is_another_by_a_link_is_left_out_and_told(folder, caplog):
    (folder / "circle").symlink_to(folder)
    assert len(data.open(folder)) == 9 and "by a link" not in caplog.text
    (folder / "again").symlink_to(folder / "a")
    assert len(data.open(folder)) == 9
    assert "by a link, which is read already; left out" in caplog.text


def test_image_size_crops_centrally_and_resamples(tmp_path):
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    write(tmp_path / "x" / "wide.png", png(wide))
    write(tmp_path / "x" / "tall.png", png(wide.T.copy()))
    opened = data.open(tmp_path / "x", image_size=5)
    # the resampling filter reaches a little beyond the crop, where the image is 0
    assert opened.shape == (1, 5, 5) and int(opened.samples.min()) > 180
    assert bool((opened.samples[:, :, 2, 2] == 200).all())
    assert data.open(tmp_path / "x", image_size=(4, 6), channels=3).shape == (3, 4, 6)


def test_downsizing_is_antialiased(tmp_path):
    stripes = np.zeros((32, 32), np.uint8)
    stripes[:, ::2] = 255
    write(tmp_path / "x" / "stripes.png", png(stripes))
    small = data.open(tmp_path / "x", image_size=8).samples
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
    assert opened.samples[0, :, 1, 1].tolist() == expected


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
    assert int(opened.samples[0, 0, 2, 4]) > 240 and int(opened.samples[0, 0, 13, 4]) < 15


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


# ------------------------------------------------------------------------- pictures of 16 bits (11)


def deep_folder(root, values, form="PNG"):
    for i, array in enumerate(values):
        write(root / f"{i}.{form.lower()}", png(array.astype(np.uint16), form=form))
    return root


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_images_that_use_fewer_bits_are_not_black(tmp_path, bits, form, caplog):
    values = noise(5, 4, 4).astype(np.uint16) << (bits - 8)
    values[3, 0, 0] = 2**bits - 1
    opened = data.open(deep_folder(tmp_path / "x", values, form))
    assert np.array_equal(opened.samples[:, 0].numpy(), values >> (bits - 8))
    if bits == 16:
        assert not caplog.records
    else:
        assert f"{bits}-bit" in caplog.text and "value_range=(0, 65535)" in caplog.text
    assert len(caplog.records) == (bits < 16)


def test_value_range_says_what_16_bit_images_span(tmp_path, caplog):
    values = np.array([[[0, 500, 1000, 2000]]], np.uint16)
    root = deep_folder(tmp_path / "x", values)
    opened = data.open(root, value_range=(0, 2000))
    assert opened.samples.flatten().tolist() == [0, 64, 128, 255]
    assert data.open(root, value_range=(0, 65535)).samples.max() == 2000 >> 8
    assert not caplog.records and opened.options == {"value_range": [0.0, 2000.0]}
    refused("0.png", "0 to 2000", "value_range", source=root, value_range=(0, 1000))
    # one of 8 bits among them has a range of its own
    write(root / "1.png", png(noise(1, 4)))
    refused("(0, 255)", source=root, value_range=(0, 2000))


def test_value_range_opens_float_image_files(tmp_path):
    image = io.BytesIO()
    Image.fromarray(np.array([[-1, 0, 1]], np.float32)).save(image, "TIFF")
    write(tmp_path / "x" / "depth.tif", image.getvalue())
    refused("depth.tif", "mode F", "value_range", source=tmp_path / "x")
    opened = data.open(tmp_path / "x", value_range=(-1, 1))
    assert opened.shape == (1, 1, 3) and opened.samples.flatten().tolist() == [0, 128, 255]


def chunk(kind, content):
    """A chunk of a PNG."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png48(array):
    """A PNG of RGB with 16 bits a channel, which Pillow reads and does not write."""
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [12, 16])
def test_colour_of_16_bits_that_would_be_black_is_told(tmp_path, bits, caplog):
    array = noise(6, 5, 3).astype(np.uint16) << (bits - 8)
    write(tmp_path / "x" / "0.png", png48(array))
    opened = data.open(tmp_path / "x")
    assert np.array_equal(opened.samples[0].permute(1, 2, 0).numpy(), array >> 8)
    assert len(caplog.records) == (bits == 12)
    assert bits == 16 or "nearly black" in caplog.text
    refused("(0, 255)", source=tmp_path / "x", value_range=(0, 4095))


# ------------------------------------------------- orientation, other formats, damaged files (24)


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def turned(form, how):
    """The bytes of an image of 16 by 8 whose orientation, a quarter turn, stands in EXIF or XMP."""
    array = np.zeros((8, 16), np.uint8)
    array[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    if form == "PNG" and how != "exif":
        plain = png(array, "RGB", form)
        late = how.startswith("late")
        place = plain.index(b"IEND" if late else b"IDAT") - 4
        if how == "late exif":
            added = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        else:
            added = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
        return plain[:place] + added + plain[place:]
    if form == "TIFF" and how == "xmp":
        return png(array, "RGB", form, tiffinfo={700: XMP})
    return png(array, "RGB", form, **({"exif": exif} if how == "exif" else {"xmp": XMP}))


@pytest.mark.parametrize("image_size", [None, (16, 8)])
@pytest.mark.parametrize(
    ("form", "how"),
    [(form, how) for form in ("PNG", "JPEG", "TIFF", "WEBP") for how in ("exif", "xmp")]
    + [("PNG", "late exif"), ("PNG", "late xmp")],
)
def test_orientation_is_applied_wherever_it_stands(tmp_path, form, how, image_size):
    write(tmp_path / "x" / f"0.{form.lower()}", turned(form, how))
    opened = data.open(tmp_path / "x", image_size=image_size)
    assert opened.shape == (3, 16, 8)
    assert int(opened.samples[0, 0, 2, 4]) > 240 and int(opened.samples[0, 0, 13, 4]) < 15


def test_pictures_of_formats_that_are_not_read_are_counted(folder, tmp_path, caplog):
    for name in ("a/1.heic", "a/2.HEIC", "b/3.avif", "4.tga", ".5.jp2"):
        write(folder / name, b"a picture")
    for source in (folder, zipped(folder, tmp_path / "x.zip")):
        caplog.clear()
        assert len(data.open(source)) == 9
        assert len(caplog.records) == 1
        for word in ("4 files are left out", "2 .heic", "1 .avif", "1 .tga", "convert"):
            assert word in caplog.text


@pytest.mark.parametrize("image_size", [None, 4])
@pytest.mark.parametrize(
    "content", [b"", b"no png", png(noise(6, 8, 3))[:60], png(noise(6, 8, 3))[:-40]]
)
def test_damaged_files_are_skipped_where_asked(folder, tmp_path, content, image_size, caplog):
    expected = data.open(folder, image_size=image_size).samples
    write(folder / "a" / "2.png", content)
    for source in (folder, zipped(folder, tmp_path / "x.zip")):
        refused("2.png", "skip_damaged=True", source=source, image_size=image_size)
        for budget in (None, 0):
            caplog.clear()
            opened = data.open(
                source, image_size=image_size, skip_damaged=True, budget_bytes=budget, workers=0
            )
            assert "1 of 9 images are damaged" in caplog.text and "2.png" in caplog.text
            assert len(opened) == 8 and opened.options["skip_damaged"] is True
            kept = opened.batch(0, 0, 8)
            indices = opened.batch_indices(0, 0, 8)
            left = torch.cat([expected[:1], expected[2:]])[indices]
            assert torch.equal(kept.images, left.float() * (2 / 255) - 1)


def test_damaged_16_bit_file_is_skipped(tmp_path, caplog):
    values = noise(5, 64, 64).astype(np.uint16)
    root = deep_folder(tmp_path / "x", values << 4)
    write(root / "2.png", png(values[2] << 4)[:-400])
    refused("2.png", source=root)
    opened = data.open(root, skip_damaged=True)
    assert np.array_equal(opened.samples[:, 0].numpy(), values[[0, 1, 3, 4]])
    assert "1 of 5" in caplog.text and "12-bit" in caplog.text


def test_nothing_but_damaged_files_is_an_error(tmp_path):
    write(tmp_path / "x" / "0.png", b"damaged")
    refused("0.png", "damaged", source=tmp_path / "x", skip_damaged=True)
    refused("skip_damaged", "no folder", source="digits", skip_damaged=True)
    refused("skip_damaged='no'", source=tmp_path / "x", skip_damaged="no")
