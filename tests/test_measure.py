"""Metrics along a run."""

import json

import pytest

import fastgan
from fastgan import measure, theory
from fastgan.cli import main
from fastgan.config import ConfigError


def made(out=None, **options):
    """A run on points of a plane, which are compared by their values."""
    return fastgan.Trainer(
        None, None, "ring8", model="points", out=out, batch_size=16, log_every=10, console="none",
        **options,
    )  # fmt: skip


def test_metrics_are_in_the_lines_and_move_nothing(tmp_path):
    t = made(tmp_path / "a", callbacks=fastgan.Measure(["swd", "recall"], every=2, n=40))
    t.fit(steps=40)
    for name in ("swd", "recall"):
        assert [name in line for line in t.history] == [False, True] * 2
    kept = [json.loads(line) for line in (tmp_path / "a/quality.jsonl").open()]
    assert [line["step"] for line in kept] == [20, 40]
    assert kept[1]["swd"] == pytest.approx(t.history[3]["swd"], rel=1e-5)
    twin = made()
    twin.fit(steps=40)
    assert [line["g_loss"] for line in t.history] == [line["g_loss"] for line in twin.history]


def test_it_counts_on_in_a_resumed_run(tmp_path):
    shown = fastgan.Measure("swd", every=3, n=40)
    t = made(tmp_path / "a", callbacks=shown)
    t.fit(steps=20)
    again = fastgan.Measure("swd", every=3, n=40)
    resumed = fastgan.Trainer.resume(tmp_path / "a", callbacks=again)
    resumed.fit(steps=40)
    assert ["swd" in line for line in resumed.history] == [False, False, True, False]


def test_the_divergence_is_the_bound_of_a_fresh_critic(monkeypatch):
    bound, asked = theory.jsd_lower_bound, []

    def quick(real, fake, steps):
        asked.append((len(real), len(fake)))
        return bound(real, fake, steps=10)

    monkeypatch.setattr(theory, "jsd_lower_bound", quick)
    t = made()
    t.fit(steps=10)
    assert measure.measured(t, ["jsd"], 44)["jsd"] < 0.7 and asked == [(44, 44)]


def test_a_name_that_is_none(here, capsys):
    with pytest.raises(ConfigError, match="measure is 'fdi'; expected of jsd, fid.*fid"):
        fastgan.Measure("fdi")
    assert main(["train", "--measure", "swd,fdi", "--steps", "1"]) == 2
    assert "measure is 'fdi'" in capsys.readouterr().err


def test_the_option(here):
    words = "--data ring8 --steps 20 --log-every 2 --batch-size 16 --quiet --out a --measure swd"
    assert main(["train", *words.split()]) == 0
    lines = [json.loads(line) for line in (here / "a/log.jsonl").open()]
    assert ["swd" in line for line in lines] == [False] * 9 + [True]
