"""Folders and archives of image files."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
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
