"""The demo: what is drawn of a run on a density, and what the theory says of it."""

import json
import math

import pytest
import torch
from PIL import Image
from report_pages import read

import fastgan
from fastgan import theory
from fastgan.cli import main
from fastgan.config import ConfigError
from fastgan.densities import DENSITIES
from fastgan.report import demo
from fastgan.run import pictures

SMALL = ("--batch-size", "16", "--steps", "20", "--log-every", "10", "--console", "none")


@pytest.fixture
def quick(monkeypatch):
    """Looks of few samples and updates."""
    made = demo.Demo.__init__
    monkeypatch.setattr(demo.Demo, "__init__", lambda self: made(self, n=200, steps=5))


def test_a_page_and_a_gif_of_a_run(here, quick, capsys):
    assert main(["demo", *SMALL]) == 0
    place = here / "runs/demo"
    assert capsys.readouterr().out.split() == [f"{place}/demo.html", f"{place}/demo.gif"]
    found = read((here / "runs/demo/demo.html").read_text())
    assert [image["data-at"] for image in found.all("img")] == ["0", "10", "20"]
    for words in ("A GAN on ring8", "Jensen-Shannon divergence", "Modes found", "Losses"):
        assert words in found.words
    with Image.open(here / "runs/demo/demo.gif") as picture:
        assert picture.n_frames >= 3 and picture.info["loop"] == 0
        picture.seek(2)
        seen = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    for line in pictures._COLOURS[:2]:
        near = min(sum(abs(a - b) for a, b in zip(line, one, strict=True)) for one in seen)
        assert near < 60, "both curves have their colour"
    lines = [json.loads(line) for line in (here / "runs/demo/log.jsonl").open()]
    assert [line["step"] for line in lines] == [10, 20]
    for line in lines:
        assert {"jsd", "jsd_by_d", "modes_found", "at_a_mode"} <= set(line)
        assert line["jsd"] < math.log(2) + 0.05 and 0 <= line["modes_found"] <= 8
    # The run is one like any other.
    assert main(["report", "runs/demo"]) == 0


def test_what_is_measured_is_what_it_says(tmp_path):
    t = fastgan.Trainer(None, None, "ring8", model="points", out=tmp_path / "a", console="none")
    shown = demo.Demo(n=400, steps=5)
    shown.start(t)
    (look,) = shown.lines
    fake, real = t.sample(400), DENSITIES["ring8"].sample(400, seed=0, step=1)[0]
    value = theory.value(t.discriminator, real, fake).value
    assert look["jsd_by_d"] == pytest.approx((value + math.log(4)) / 2, rel=1e-4)
    assert t.discriminator.training and t.step == 0


def test_of_raw_scores_there_is_no_value_of_the_run_s_own_d(tmp_path):
    t = fastgan.Trainer(
        None, None, "moons", model="points", loss="hinge", out=tmp_path / "a", console="none",
        callbacks=demo.Demo(n=100, steps=2), batch_size=16,
    )  # fmt: skip
    t.fit(steps=5)
    # By samples only: no modes are counted, either.
    assert {"jsd_by_d", "modes_found"}.isdisjoint(t.history[-1]) and "jsd" in t.history[-1]
    assert "Modes found" not in read((tmp_path / "a/demo.html").read_text()).words


def test_modes_are_counted():
    ring = DENSITIES["ring8"]
    samples = ring.means[:4].float().repeat(25, 1)
    samples[:20] = 0.0  # at none
    found = demo._at_modes(ring, samples)
    assert found == {"modes_found": 4, "at_a_mode": pytest.approx(0.8)}
    # A hundredth of the samples at a fifth mode is too little.
    samples[:1] = ring.means[5].float()
    assert demo._at_modes(ring, samples)["modes_found"] == 4


def test_the_ground_has_the_colours_of_the_surface():
    # Probability 0 on the left, 1 on the right, and 1/2 in the upper half.
    def surface(x):
        right = (x[:, 0] > 0).double()
        return torch.where(x[:, 1] > 0, torch.full_like(right, 0.5), right)

    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    picture = pictures.plane(corners, corners, surface)
    width, height = picture.size
    low, middle, high = pictures._SURFACE
    assert picture.getpixel((width // 4, height * 5 // 8)) == low
    assert picture.getpixel((width * 13 // 16, height * 5 // 8)) == high
    assert picture.getpixel((width * 13 // 16, height * 5 // 16)) == middle


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": "digits"}, "points of a plane"),
        ({"data": "ring8", "model": "points", "out": None}, "give the run a directory"),
    ],
)
def test_what_cannot_be_shown_is_said_before_anything_is_written(given, words, tmp_path):
    given = {"out": tmp_path / "a", "console": "none", "callbacks": demo.Demo(), **given}
    with pytest.raises(ConfigError, match=words):
        fastgan.Trainer(None, None, **given)
    assert not any(tmp_path.iterdir())


def test_the_command_refuses_images_in_one_line_and_leaves_nothing(here, capsys):
    assert main(["demo", "--data", "digits"]) == 2
    said = capsys.readouterr().err
    assert "a demo shows points of a plane" in said and "resume" not in said
    assert said.count("\n") == 1 and not any(here.iterdir())


def test_pairs_that_take_more_than_a_point_are_refused(tmp_path):
    class Both(torch.nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.layer = torch.nn.Linear(inputs, outputs)

        def forward(self, x, label):
            return self.layer(x)

    with pytest.raises(ConfigError, match="takes no conditions"):
        fastgan.Trainer(
            Both(3, 2), Both(2, 1), "ring8", latent_dim=3, out=tmp_path / "a", console="none",
            callbacks=demo.Demo(),
        )  # fmt: skip
