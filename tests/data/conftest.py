"""What every test of the data room starts from."""

import pytest
from data_kit import noise, png, write


@pytest.fixture(autouse=True)
def away_from_home(tmp_path, monkeypatch):
    """No test sees the user's own data sets or writes to them."""
    monkeypatch.setenv("FASTGAN_DATA", str(tmp_path / "usual root"))
    monkeypatch.chdir(tmp_path)


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
