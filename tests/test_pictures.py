"""The pictures of a run."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastgan.run import pictures


def test_grids(tmp_path):
    for channels, mode in ((1, "L"), (3, "RGB")):
        images = torch.full((5, channels, 28, 28), -1.0)
        images[3] = 1.0
        pictures.grid(images, tmp_path / "grid.png")
        picture = Image.open(tmp_path / "grid.png")
        assert picture.mode == mode and picture.size == (3 * 58 + 2, 2 * 58 + 2)
        white = (255,) * 3 if mode == "RGB" else 255
        assert picture.getpixel((20, 80)) == white and picture.getpixel((80, 80)) != white
    with pytest.raises(ValueError, match="columns is 0; expected at least 1"):
        pictures.grid(torch.zeros(3, 1, 4, 4), tmp_path / "grid.png", columns=0)


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((1, 8, 8), True), ((3, 8, 4), True), ((2, 8, 8), False), ((4, 8, 8), False),
        ((12,), False), ((1, 12), False), ((3, 4, 4, 4), False), ((), False), ((3, 0, 4), False),
    ],
)  # fmt: skip
def test_what_is_no_image_is_not_drawn(tmp_path, shape, drawn):
    assert pictures.drawable(shape) == drawn
    if drawn:
        pictures.grid(torch.zeros(2, *shape), tmp_path / "grid.png")
    else:
        with pytest.raises(ValueError, match=r"expected \[n, 1, H, W\] .grey. or \[n, 3, H, W\]"):
            pictures.grid(torch.zeros(2, *shape), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").exists() == drawn


def test_points_are_drawn_over_those_of_the_data_on_axes_that_stay(tmp_path):
    blue, grey = (31, 119, 180), (170, 170, 170)
    real = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])

    def drawn(samples, real=real):
        pictures.scatter(samples, tmp_path / "a.png", real)
        picture = Image.open(tmp_path / "a.png").convert("RGB")
        pixels = torch.from_numpy(np.array(picture))
        return [(pixels == torch.tensor(c)).all(-1).nonzero() for c in (blue, grey)]

    middle, data = drawn(torch.zeros(1, 2))
    assert len(middle) and len(data)
    # Data in opposite corners and the sample between them.
    assert (middle.double().mean(0) - data.double().mean(0)).abs().max() < 2
    right, moved = drawn(torch.tensor([[0.5, 0.0]]))
    assert torch.equal(moved, data), "the axes are those of the data"
    assert right[:, 1].double().mean() > middle[:, 1].double().mean() + 50
    above, _ = drawn(torch.tensor([[0.0, 1e6]]))
    assert 0 < above[:, 0].double().mean() < data[:, 0].min(), "what is far is on the border"
    nothing, still = drawn(torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0]]))
    assert not len(nothing) and torch.equal(still, data)
    alone, none = drawn(torch.zeros(3, 2), None)
    assert len(alone) and not len(none)
    for bad in (torch.zeros(3, 3), torch.zeros(0, 2), torch.zeros(2)):
        with pytest.raises(ValueError, match="expected points"):
            pictures.scatter(bad, tmp_path / "b.png")
    with pytest.raises(ValueError, match="real is"):
        pictures.scatter(torch.zeros(3, 2), tmp_path / "b.png", torch.zeros(3, 4))


def test_any_statistics_are_plotted_where_they_are_numbers(tmp_path):
    blue, orange, green = (31, 119, 180), (255, 127, 14), (44, 160, 44)
    history = [
        {"step": 1, "d_real_mean": 0.5, "fid": 9.0},
        {"step": 2, "d_real_mean": 0.75, "fid": None},
        {"step": 3, "d_real_mean": 1.0, "fid": 3.0},
    ]
    curves = {"d_real": "D on real", "fid": "FID", "absent": "nothing"}
    pictures.loss_plot(history, tmp_path / "a.png", curves, "scores")
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    plot = picture.crop((70, 33, 880, 451))
    colours = {colour for _, colour in plot.getcolors(1 << 20)}
    assert blue in colours and orange in colours and green not in colours
    legend = {colour for _, colour in picture.crop((400, 0, 880, 28)).getcolors(1 << 20)}
    assert green in legend
    with pytest.raises(ValueError, match="curves holds 11; expected at most 10"):
        pictures.loss_plot([], tmp_path / "b.png", {str(i): str(i) for i in range(11)})


def test_a_plot_of_the_losses(tmp_path):
    blue, orange = (31, 119, 180), (255, 127, 14)
    for steps in ([10], [5, 20], [10, 20, 30, 40]):
        # D falls from above G to below it.
        lines = [
            {"step": s, "d_loss_mean": 1 - s / steps[-1], "g_loss_mean": s / steps[-1] - 0.5}
            for s in (steps if len(steps) > 1 else [0])
        ]
        pictures.loss_plot(lines, tmp_path / "loss.png")
        picture = Image.open(tmp_path / "loss.png").convert("RGB")

        def heights(colour, columns, picture=picture):
            found = [
                y for x in columns for y in range(32, 451) if picture.getpixel((x, y)) == colour
            ]
            assert found, "a line for each network"
            return sum(found) / len(found)

        left = range(60, 200) if len(steps) > 1 else range(450, 490)
        assert heights(blue, left) < heights(orange, left) - 50
        if len(steps) > 1:
            right = range(760, 870)
            assert heights(blue, right) > heights(orange, right) + 50
    pictures.loss_plot([], tmp_path / "empty.png")
    assert Image.open(tmp_path / "empty.png").size == picture.size


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6), st.integers(6, 12))
def test_ticks_are_round_and_within_the_axis(low, span, asked):
    axis = pictures.Axis([low, low + span], 70, 860, ticks=asked)
    assert asked * 0.4 - 1 <= len(axis.ticks) <= asked + 1
    assert all(70 - 1e-6 <= axis.place(tick) <= 860 + 1e-6 for tick in axis.ticks)
    width = float(f"{axis.ticks[1] - axis.ticks[0]:.3g}")
    assert f"{width:e}"[:6] in ("1.0000", "2.0000", "5.0000")
    assert axis.place(low) == pytest.approx(70)
    assert axis.place(low + span) == pytest.approx(860)


def test_pictures_need_no_matplotlib(tmp_path):
    # Half a second of importing and plotting, more than all else but the steps of a short run.
    code = (
        "import sys, torch; from fastgan.run import pictures; pictures.loss_plot([], 'a.png'); "
        "pictures.grid(torch.zeros(1, 1, 4, 4), 'b.png'); assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def moving(n=5, size=(7, 5)):
    return [Image.new("RGB", size, (40 * i, 100, 200 - 40 * i)) for i in range(n)]


def test_a_film_as_gif_and_as_video_has_every_picture(tmp_path):
    pictures.animate(moving(), tmp_path / "a.gif", seconds=0.1)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 5 and gif.size == (7, 5) and gif.info["duration"] == 100
    iio = pytest.importorskip("imageio.v3")
    pytest.importorskip("imageio_ffmpeg")
    # Large enough for the codec, which keeps colours in blocks of two.
    pictures.animate(moving(size=(65, 33)), tmp_path / "a.MP4", seconds=0.1)
    found = iio.imread(tmp_path / "a.MP4")
    assert found.shape == (5, 34, 66, 3), "sides are even"
    for i, frame in enumerate(found):
        assert abs(frame[8, 8].astype(int) - [40 * i, 100, 200 - 40 * i]).max() < 12
    assert iio.immeta(tmp_path / "a.MP4")["fps"] == 10


def test_a_film_of_another_kind_or_without_imageio_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"a.webm ends in '.webm'; expected .gif or .mp4"):
        pictures.animate(moving(), tmp_path / "a.webm")
    monkeypatch.setitem(sys.modules, "imageio", None)
    with pytest.raises(ValueError, match=r"pip install 'fastgan\[video\]', or .* ends in .gif"):
        pictures.animate(moving(), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_plot_up_to_a_step_has_the_axes_of_all():
    history = [{"step": 10 * i, "d_loss": float(i), "g_loss": 1.0} for i in range(1, 9)]
    whole, half, none = (
        np.asarray(pictures.plot(history, pictures.LOSS_CURVES, "t", until=until))
        for until in (None, 40, 0)
    )
    assert whole.shape == half.shape
    assert 0 < (half != none).sum() < (whole != none).sum()
    assert pictures.plot(history, pictures.LOSS_CURVES, "t", width=500).width == 500
