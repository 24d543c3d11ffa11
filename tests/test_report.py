"""The page on runs: what stands in it, of any run, whatever its files are like."""

import base64
import html
import io
import json
import re
import shutil

import pytest
import torch
from many_runs import POINTS
from PIL import Image
from report_pages import read
from small_runs import own, small
from torch import nn

import fastgan
from fastgan import report
from fastgan.cli import main
from fastgan.config import ConfigError
from fastgan.report import charts, frames, markup, page
from fastgan.report.charts import Curve, Mark, chart
from fastgan.run import checkpoint


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of images with everything that is kept: an average, alarms on, a measurement."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    t = fastgan.Trainer(
        None, None, "digits", out=out, device="cpu", batch_size=16, ema=0.9, log_every=10,
        console="none", callbacks=fastgan.Alarms(),
    )  # fmt: skip
    t.fit(steps=60)
    t.evaluate("swd", n=50, features=nn.Flatten())
    return out


def test_a_page_on_a_run(digits):
    found = read(report.of_runs(digits).html)
    words = found.words
    for expected in (
        "60 (epoch 1)", "60 steps", "5,000", "Generator (227,344 weights)", "Discriminator (",
        "ema", "swd", "ms per step", "diversity", "checkpoint-60.pt", "no alarm was raised",
        f"fastgan train --resume {digits}",
        "A walk through the latents", "Flatten",
    ):  # fmt: skip
        assert expected in words, expected
    samples = [a for a in found.all("img") if "at step" in a["alt"]]
    assert [a["data-at"] for a in samples] == ["10", "20", "30", "40", "50", "60"]
    assert [("hidden" in a) for a in samples] == [True] * 5 + [False]
    assert len(found.all("img")) == 6 + 32
    assert [a["data-scrub"] for a in found.all("div") if "data-scrub" in a] == ["time", "walk"]
    labels = [a["aria-label"] for a in found.all("div") if a.get("role") == "img"]
    assert len(labels) == 9 and labels[0].startswith("Losses: D goes from ")


def test_pictures_are_those_of_the_run(digits):
    uri = re.findall(r'src="(data:image/png;base64,[^"]+)"', report.of_runs(digits).html)

    def opened(one):
        return Image.open(io.BytesIO(base64.b64decode(one.split(",")[1])))

    last = opened(uri[5])
    with Image.open(digits / "samples.png") as drawn:
        assert last.size == drawn.size and last.tobytes() == drawn.tobytes()
    walk = [opened(one) for one in uri[6:]]
    # Its first tile is the first of samples.png, there of twice the size.
    first = walk[0].crop((2, 2, 30, 30)).resize((56, 56), Image.Resampling.NEAREST)
    assert first.tobytes() == last.crop((2, 2, 58, 58)).tobytes()
    assert len({picture.tobytes() for picture in walk}) == len(walk)


def test_runs_side_by_side(tmp_path):
    for name, options in {"a/x": {"lr": 1e-3}, "b/x": {"lr": 2e-3}, "y": {"loss": "hinge"}}.items():
        small(tmp_path / name, **options).fit(steps=30)
    found = read(report.of_runs([tmp_path / n for n in ("a/x", "b/x", "y")]).html)
    titles = [t for tag, t in found.texts if tag == "title"]
    assert titles == ["a/x, b/x, y: a fastgan report"]
    text = report.of_runs([tmp_path / n for n in ("a/x", "b/x", "y")]).html
    differing = re.search(r"What differs between the runs.*?</table>", text, re.S)[0]
    rows = re.findall(r'<th scope="row">(\w+)</th>', differing)
    assert rows == ["loss", "lr"]
    assert re.findall(r"<td>([^<]+)</td>", differing) == [
        *("non-saturating", "non-saturating", "hinge"), *("0.001", "0.002", "0.0002"),
    ]  # fmt: skip
    legend = re.search(r"<strong>Losses: D</strong>.*?</ul>", text, re.S)[0]
    assert re.findall(r'class="name">([^<]+)<', legend) == ["a/x", "b/x", "y"]
    assert sum("at step" in a["alt"] for a in found.all("img")) == 9


NASTY = """<b>&amp;"x' </script><img src=http://a/b onerror=alert(1)>"""


def test_texts_that_look_like_html_are_texts(tmp_path):
    out = tmp_path / """a<i>&"'b"""
    t = small(out, callbacks=fastgan.Alarms(), log_every=1)
    t.fit(steps=2)
    line = json.loads((out / "log.jsonl").read_text().splitlines()[1])
    line |= {NASTY: 1.5, "alarms": [NASTY]}
    with open(out / "log.jsonl", "a") as log:
        log.write(json.dumps(line | {"step": 3}) + "\n")
    config = json.loads((out / "config.json").read_text())
    config["about"] |= {"origin": NASTY, "engine": NASTY}
    (out / "config.json").write_text(json.dumps(config))
    (out / "quality.jsonl").write_text(json.dumps({"step": 2, "swd": 1, "features": NASTY}))
    text = report.of_runs(out).html
    found = read(text)
    assert not [name for name, _ in found.elements if name in ("b", "i")]
    assert not [a for _, a in found.elements if "onerror" in a]
    assert found.words.count(NASTY) >= 3 and """a<i>&"'b""" in found.words
    assert "http://" not in re.sub(r">[^<]*<", "><", text).replace(html.escape(NASTY), "")


def test_what_cannot_be_read_is_said_and_left_out(digits, tmp_path):
    out = tmp_path / "broken"
    shutil.copytree(digits, out)
    with open(out / "log.jsonl", "ab") as log:
        log.write(b'{"step": "x"}\n[1]\nnonsense\n{"step": 70, "epoch"')
    (out / "timing.jsonl").write_bytes(b"\x00\xff\n")
    (out / "config.json").write_text("{")
    (out / "samples/00000020.png").write_bytes(b"no picture")
    (out / "checkpoint.pt").write_bytes((out / "checkpoint.pt").read_bytes()[:1000])
    words = read(report.of_runs(out).html).words
    for expected in (
        "4 lines of log.jsonl cannot be read", "1 line of timing.jsonl",
        "config.json cannot be read",
        "00000020.png cannot be read", "checkpoint.pt is damaged", "Losses",
        "no checkpoint that the run could be continued from",
    ):  # fmt: skip
        assert expected in words, expected
    assert "at step 20" not in words


def test_runs_that_have_hardly_begun_or_were_killed(tmp_path):
    small(tmp_path / "one").fit(steps=3)
    found = read(report.of_runs(tmp_path / "one").html)
    assert "3 (epoch 1)" in found.words
    assert {a["class"] for a in found.all("path")} == {"g"}, "no lines of one point"
    assert [a["class"] for a in found.all("span") if a.get("class", "").startswith("dot")]
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("log.jsonl", "config.json"):
        (killed / name).write_bytes((tmp_path / "one" / name).read_bytes())
    words = read(report.of_runs(killed).html).words
    assert "the run ended before its first save" in words
    t = small(tmp_path / "saved")
    t.out.mkdir()
    t.save()
    words = read(report.of_runs(tmp_path / "saved").html).words
    assert "There is no config.json" in words and "continue the run" in words
    with pytest.raises(ConfigError, match="there is no run .*nowhere"):
        report.of_runs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no run"):
        report.of_runs(tmp_path / "empty")
    with pytest.raises(ConfigError, match="paths is empty"):
        report.of_runs([])


def test_an_ensemble_stands_for_its_members(tmp_path):
    whole = fastgan.Ensemble(members=fastgan.grid(seed=[0, 1]), out=tmp_path / "e", **POINTS)
    whole.fit(steps=10)
    both = report.of_runs([tmp_path / "e" / name for name in "01"]).html
    assert report.of_runs(tmp_path / "e").html == both


def test_the_log_goes_on_beyond_the_checkpoint(digits, tmp_path):
    out = tmp_path / "running"
    shutil.copytree(digits, out)
    line = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    with open(out / "log.jsonl", "a") as log:
        log.write(json.dumps(line | {"step": 1070}) + "\n")
    words = read(report.of_runs(out).html).words
    assert "goes on to step 1,070, the checkpoint holds step 60" in words


# --- kinds of data --------------------------------------------------------------------------------


def test_points_have_pictures_and_no_walk(tmp_path):
    fastgan.Trainer(
        None, None, "ring8", model="points", width=4, out=tmp_path / "a", device="cpu",
        log_every=5, console="none",
    ).fit(steps=10)  # fmt: skip
    found = read(report.of_runs(tmp_path / "a").html)
    assert len(found.all("img")) == 2 and "made" not in [a.get("id") for a in found.all("section")]


def test_vectors_are_drawn_as_lines(tmp_path):
    rows = torch.randn(40, 12)
    fastgan.Trainer(
        None, None, rows, model="mlp", width=4, out=tmp_path / "a", device="cpu", console="none",
        batch_size=8,
    ).fit(steps=2)  # fmt: skip
    found = read(report.of_runs(tmp_path / "a").html)
    assert "6 samples of a" in found.words and "sample 6" in found.words
    assert not found.all("img") and "trainer.evaluate()" in found.words


def test_a_table_shows_rows(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"size": torch.randn(60).tolist(), "<kind>": ["a&b", "c"] * 30})
    fastgan.tabular.Synthesizer(
        epochs=1, batch_size=20, width=8, out=tmp_path / "a", device="cpu"
    ).fit(frame)
    fastgan.tabular.evaluate_run(tmp_path / "a", frame, ["shapes", "pairs"])
    found = read(report.of_runs(tmp_path / "a").html)
    assert "shapes\u00a0↑" in found.words and "other rows" in found.words
    assert "8 rows that a makes" in found.words and "<kind>" in found.words
    assert {t for tag, t in found.texts if tag == "td"} & {"a&b", "c"}


class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 36)
        self.labels = nn.Embedding(10, 8)

    def forward(self, z, y):
        return torch.tanh(self.body(z + self.labels(y))).view(-1, 1, 6, 6)


class Scored(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(36, 1)

    def forward(self, x, y):
        return self.body(x.flatten(1)) + 0 * y[:, None]


def test_networks_of_a_users_own_with_labels(tmp_path):
    images = torch.randint(0, 256, (30, 1, 6, 6), dtype=torch.uint8)
    data = torch.utils.data.TensorDataset(images, torch.arange(30) % 10)
    t = fastgan.Trainer(
        Labelled(), Scored(), data, latent_dim=8, batch_size=8, device="cpu", engine="eager",
        console="none", out=tmp_path / "a",
    )  # fmt: skip
    t.fit(steps=2)
    found = read(t.show().html)
    assert sum("A walk" in a["alt"] for a in found.all("img")) == 32
    words = read(report.of_runs(tmp_path / "a").html).words
    assert "no samples could be made for this page" in words and "pass generator=" in words
    assert "Trainer.resume(" in words and "generator=..., discriminator=..., data=..." in words


def test_own_networks_are_drawn_where_they_are_passed(tmp_path):
    t = own(tmp_path / "a")
    t.fit(steps=2)
    found = read(report.of_runs(tmp_path / "a", type(t.generator)()).html)
    assert sum("A walk" in a["alt"] for a in found.all("img")) == 32


# --- in a notebook --------------------------------------------------------------------------------


def test_a_run_at_work_is_shown(tmp_path):
    t = small()
    t.fit(steps=20)
    before = t.generator.training
    shown = t.show()
    assert "writes to no directory" in read(shown.html).words
    frame = shown._repr_html_()
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1]) == shown.html
    assert t.generator.training == before
    assert shown.save(tmp_path / "page.html").read_text() == shown.html
    assert len(repr(shown)) < 100
    with pytest.raises(ConfigError, match="there is no directory"):
        shown.save(tmp_path / "no" / "page.html")
    kept = small(tmp_path / "kept", callbacks=fastgan.Alarms())
    assert "has saved nothing yet" in read(kept.show().html).words
    kept.fit(steps=20)
    assert "step 20" in read(kept.show().html).words


# --- parts ----------------------------------------------------------------------------------------


def test_a_chart_has_the_points_where_they_belong():
    curve = Curve("a", [(0, 0.0), (50, 1.0), (100, 0.5)], 9)
    text = chart("T", [curve], span=(0, 100), marks=[Mark(25, 75, "alarm")])
    path = re.search(r'<path d="M([\d. L]+)" class="c1 dashed">', text)[1]
    points = [tuple(map(float, p.split())) for p in path.split("L")]
    assert [x for x, _ in points] == [0, 500, 1000]
    heights = [y for _, y in points]
    # The lowest at the bottom, the highest at the top, with a little room.
    assert heights[1] < 20 and heights[0] > 280
    assert heights[2] == pytest.approx((heights[0] + heights[1]) / 2, abs=0.2)
    band = re.search(r'<rect x="250" y="0" width="500"', text)
    assert band and "<title>alarm</title>" in text
    assert "a goes from 0 to 0.5, lowest 0, highest 1; alarm." in text
    assert chart("T", [Curve("a", [], 0)], span=(0, 1)) == ""


def test_long_curves_keep_their_ends_and_extremes():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)).tolist()
    points = list(enumerate(values))
    thin = charts.thinned(points, 600)
    assert len(thin) <= 602 and thin == sorted(thin) and set(thin) <= set(points)
    assert thin[0] == points[0] and thin[-1] == points[-1]
    assert min(thin, key=lambda p: p[1])[1] == min(values)
    assert max(thin, key=lambda p: p[1])[1] == max(values)
    assert charts.thinned(points[:5], 600) == points[:5]


def test_pictures_are_fitted_into_the_room(tmp_path):
    noise = torch.randint(0, 256, (70, 120, 120, 3), dtype=torch.uint8)
    series = [(i, Image.fromarray(one.numpy())) for i, one in enumerate(noise)]
    kept, _ = frames.embed(series, 10**8)
    assert len(kept) == frames.MOST and kept[0].at == 0 and kept[-1].at == 69
    assert all(f.uri.startswith("data:image/png") and f.size == (120, 120) for f in kept)
    lossy, _ = frames.embed(series, 1_000_000)
    assert len(lossy) == frames.MOST and "png" not in lossy[0].uri[:20]
    few, _ = frames.embed(series, 100_000)
    assert 3 < len(few) < 40 and few[0].at == 0 and few[-1].at == 69
    assert sum(len(f.uri) for f in few) <= 100_000
    assert [f.at for f in frames.embed(series, 10)[0]] == [69]
    (tmp_path / "a.png").write_bytes(b"no")
    big = tmp_path / "b.png"
    Image.new("L", (5000, 100)).save(big)
    found, unread = frames.embed([(1, tmp_path / "a.png"), (2, big)], 10**6)
    assert unread == ["a.png"] and [(f.at, f.size) for f in found] == [(2, (1200, 24))]


def test_markup_escapes_what_is_not_markup():
    assert markup.tag("p", "<&", class_='"', data_x=True, hidden=False) == (
        '<p class="&quot;" data-x>&lt;&amp;</p>'
    )
    assert markup.text("<", None, [markup.Markup("<b>"), ("'",)]) == "&lt;<b>&#x27;"
    told = markup.data({"a": "</script><!--"}).removesuffix("</script>")
    assert "</" not in told and "<!" not in told


def test_a_page_of_many_runs_is_no_larger(tmp_path):
    small(tmp_path / "a").fit(steps=10)
    noise = torch.randint(0, 256, (400, 400), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "a/samples/00000001.png")
    for i in range(2, 40):
        shutil.copy(tmp_path / "a/samples/00000001.png", tmp_path / f"a/samples/{i:08d}.png")
    one = len(report.of_runs(tmp_path / "a").html)
    assert page.ROOM * (1 - page.WALK) / 2 < one < 5_000_000
    found = read(report.of_runs([tmp_path / "a"] * 3).html)
    assert [t for tag, t in found.texts if tag == "h1"][0].count("a (") == 3


# --- the command ----------------------------------------------------------------------------------


def test_the_command_takes_the_newest_run(here, capsys):
    assert main(["report"]) == 2
    assert "there is no run in" in capsys.readouterr().err
    small(here / "runs/a").fit(steps=1)
    small(here / "runs/b").fit(steps=1)
    checkpoint_a = here / "runs/a" / checkpoint.FILE
    assert main(["report"]) == 0
    out, err = capsys.readouterr()
    assert out == "runs/b/report.html\n" and "the newest run is runs/b" in err
    checkpoint_a.touch()
    assert main(["report", "--out", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n"
    assert "<h1>a</h1>" in (here / "page.html").read_text()
    assert main(["report", "runs/b", "runs/a/checkpoint.pt"]) == 0
    assert "<h1>b, a</h1>" in (here / "runs/b/report.html").read_text()
    assert main(["report", "runs/c"]) == 2
    assert "there is no run runs/c" in capsys.readouterr().err


def test_a_walk_of_a_run_at_work_and_of_its_directory_is_the_same_film(tmp_path):
    t = small(out=tmp_path / "a")
    t.fit(steps=10)
    report.interpolate(t, tmp_path / "b.gif", 4, between=2)
    assert report.interpolate(tmp_path / "a", tmp_path / "c.gif", 4, between=2).exists()
    assert (tmp_path / "b.gif").read_bytes() == (tmp_path / "c.gif").read_bytes()
    report.interpolate(t, tmp_path / "d.gif", 4, between=2, seed=5)
    assert (tmp_path / "d.gif").read_bytes() != (tmp_path / "b.gif").read_bytes()
    with pytest.raises(ConfigError, match=r"ends otherwise than in .gif or .mp4"):
        report.interpolate(t, tmp_path / "e.png")
