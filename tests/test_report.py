"""The pictures of a run."""

import pytest
import torch
from PIL import Image

from fastgan import report


def test_grids(tmp_path):
    for channels, mode in ((1, "L"), (3, "RGB"), (2, "L")):
        images = torch.full((5, channels, 28, 28), -1.0)
        images[3] = 1.0
        report.grid(images, tmp_path / "grid.png")
        picture = Image.open(tmp_path / "grid.png")
        assert picture.mode == mode and picture.size == (3 * 58 + 2, 2 * 58 + 2)
        white = (255,) * 3 if mode == "RGB" else 255
        assert picture.getpixel((20, 80)) == white and picture.getpixel((80, 80)) != white
    with pytest.raises(ValueError, match="expected .n, C, H, W."):
        report.grid(torch.zeros(3, 3), tmp_path / "grid.png")
    with pytest.raises(ValueError, match="columns is 0; expected at least 1"):
        report.grid(torch.zeros(3, 1, 4, 4), tmp_path / "grid.png", columns=0)


def test_a_plot_of_the_losses(tmp_path):
    for steps in ([10], [10, 20, 30, 40]):
        lines = [{"step": s, "d_loss_mean": 1.0 / s, "g_loss_mean": s / 10.0} for s in steps]
        report.loss_plot(lines, tmp_path / "loss.png")
        colours = Image.open(tmp_path / "loss.png").convert("RGB").getcolors(1 << 20)
        pixels = {colour for _, colour in colours}
        assert (31, 119, 180) in pixels and (255, 127, 14) in pixels, "a line for each network"
