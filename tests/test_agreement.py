"""The comparison of long runs: its distance, its rule, and a short real one."""

import json
import math

import agreement
import frechet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgan import ops

DOUBLE = {"dtype": torch.float64}


def sample_of(mean, cov, n=40, seed=0):
    """n points whose mean and covariance are these, to rounding."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, len(mean), generator=generator, **DOUBLE)
    points -= points.mean(0)
    whiten = torch.linalg.inv(torch.linalg.cholesky(torch.atleast_2d(torch.cov(points.T))))
    return points @ whiten.T @ torch.linalg.cholesky(cov).T + mean


def test_frechet_of_two_gaussians_worked_out_by_hand():
    a = sample_of(
        torch.tensor([0.0, 0.0], **DOUBLE), torch.diag(torch.tensor([1.0, 4.0], **DOUBLE))
    )
    b = sample_of(
        torch.tensor([3.0, 4.0], **DOUBLE), torch.diag(torch.tensor([9.0, 1.0], **DOUBLE))
    )
    # 9 + 16 for the means, (1 - 3)^2 and (2 - 1)^2 for the deviations.
    assert frechet.frechet(a, b) == pytest.approx(30, rel=1e-9)
    assert frechet.frechet(b, a) == pytest.approx(30, rel=1e-9)
    assert frechet.frechet(a, a) == pytest.approx(0, abs=1e-9)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_frechet_of_any_gaussians(features, seed):
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(2, features, features, generator=generator, **DOUBLE)
    cov_a, cov_b = (f @ f.T + 0.1 * torch.eye(features, **DOUBLE) for f in factors)
    mean_a, mean_b = torch.randn(2, features, generator=generator, **DOUBLE)
    # The eigenvalues of A B are those of A^1/2 B A^1/2: another way to the same trace.
    trace = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    expected = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace
    found = frechet.frechet(sample_of(mean_a, cov_a, seed=1), sample_of(mean_b, cov_b, seed=2))
    assert found == pytest.approx(float(expected), rel=1e-6, abs=1e-8)


def test_frechet_with_features_that_are_always_zero():
    # As of a ReLU that never fires: the covariance is singular.
    a, b = torch.zeros(10, 3), torch.zeros(10, 3)
    a[:, 0], b[:, 0] = torch.arange(10.0), torch.arange(10.0) + 2
    assert frechet.frechet(a, b) == pytest.approx(4, rel=1e-9)


def runs(**values):
    """Runs whose quantities are all these; the control is far off unless given."""
    values = {"control": (19.0, 20.0, 21.0), **values}
    return {
        name: [dict.fromkeys(agreement.QUANTITIES, value) for value in each]
        for name, each in values.items()
    }


def verdict_on(eager, fused, bf16, **control):
    values = {"eager": eager, "fused": fused, "fused-bf16": bf16}
    verdicts = agreement.compare(runs(**values, **control))
    assert list(verdicts) == list(agreement.QUANTITIES)
    return verdicts["frechet"]


def test_the_spread_is_between_seeds_and_the_noise_at_equal_seeds():
    # Means of 2, 4 and 3; deviations of 1, 1 and 2.
    verdict = verdict_on((1.0, 2.0, 3.0), (3.0, 4.0, 5.0), (1.0, 3.0, 5.0))
    assert verdict["spread"] == pytest.approx(math.sqrt(2))
    assert verdict["furthest_apart"] == ["eager", "fused"]
    assert verdict["apart_in_spreads"] == pytest.approx(math.sqrt(2))
    # The seeds lie at -4/3, 0 and 4/3: left are thrice 1/3, -1/3, once 2/3, -2/3, over 4.
    assert verdict["noise"] == pytest.approx(math.sqrt((4 / 9 + 8 / 9) / 4))
    assert verdict["control_in_noises"] == pytest.approx(16 / verdict["noise"])
    assert verdict["apart_in_noises"] == pytest.approx(2 / verdict["noise"])
    # A seed that shifts all of them makes a spread, but no noise.
    shifted = verdict_on((1.0, 2.0, 33.0), (3.0, 4.0, 35.0), (1.0, 3.0, 35.0))
    assert shifted["noise"] == pytest.approx(verdict["noise"])
    assert shifted["spread"] > 10 * verdict["spread"]


def test_either_measure_can_refuse():
    assert verdict_on((1.0, 2.0, 3.0), (1.1, 2.0, 3.0), (1.0, 2.1, 3.0))["agree"]
    # A tenth is small beside the spread, and large beside the noise.
    verdict = verdict_on((1.0, 2.0, 3.0), (1.1, 2.1, 3.1001), (1.0, 2.0, 3.0))
    assert verdict["apart_in_spreads"] < 2 and not verdict["agree"]
    # Only with seeds that contradict each other can it be the other way round.
    verdict = verdict_on((0.0, 2.0, 1.0), (2.0, 4.0, 6.0), (4.1, 5.0, 4.0))
    assert verdict["apart_in_noises"] < 4 and verdict["apart_in_spreads"] > 2
    assert not verdict["agree"]


def test_all_must_agree_and_the_control_must_not():
    close = {"eager": (1.0, 2.0, 3.0), "fused": (1.1, 2.0, 3.0), "fused-bf16": (1.0, 2.1, 3.0)}
    assert agreement.passed(agreement.compare(runs(**close)))
    blunt = agreement.compare(runs(**close, control=(1.0, 2.0, 3.0)))
    assert all(verdict["agree"] for verdict in blunt.values()) and not agreement.passed(blunt)
    apart = agreement.compare(runs(**{**close, "fused": (6.0, 7.0, 8.0)}))
    assert not agreement.passed(apart)


def test_digits_have_their_classes():
    train, test = frechet.labelled("digits")
    assert len(train.labels) == len(train.images) == 4500 and len(test.labels) == 500
    for part in (train, test):
        assert part.images.min() == -1 and part.images.max() == 1
        assert torch.bincount(part.labels).tolist() == [len(part.labels) // 10] * 10
    classifier = frechet.train_classifier(train, epochs=1)
    assert frechet.accuracy(classifier, test) > 0.7, "labels that fit the images can be learned"
    assert frechet.features_of(classifier, test.images[:7]).shape == (7, 64)


needs_fused = pytest.mark.skipif(
    ops.library_status()["cpu"] != "loaded", reason="the fused engine is not built"
)


@needs_fused
def test_a_short_comparison_in_two_pieces(tmp_path, capsys, monkeypatch):
    arguments = ["--data", "digits", "--epochs", "1", "--seeds", "2", "--threads", "1"]
    arguments += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "records")]
    threads = torch.get_num_threads()
    try:
        assert agreement.main([*arguments, "--limit", "1e-9"]) == 3
        assert "0 of 8 runs are done" in capsys.readouterr().err
        status = agreement.main(arguments)
        out, _ = capsys.readouterr()
        (path,) = (tmp_path / "records").glob("*-agreement.json")
        record = json.loads(path.read_text())
        assert path.with_suffix(".md").read_text() == out
        assert status == (0 if agreement.passed(record["verdicts"]) else 1)
        for name, each in record["runs"].items():
            assert [run["seed"] for run in each] == [10, 11]
            assert all(run["steps"] == 79 and run["frechet"] > 0 for run in each)
            assert each[0]["d_loss"] != each[1]["d_loss"]
            row = next(line for line in out.splitlines() if line.startswith("| Frechet"))
            assert f"{record['verdicts']['frechet']['means'][name]:.4f} ±" in row
        # 79 steps are too few for rounding to show beside the seed.
        assert all(verdict["apart_in_spreads"] < 0.5 for verdict in record["verdicts"].values())
        assert "fused" in record["runs"]["fused-bf16"][0]["how"]

        # All is done: a second call only reads. A run of something else is refused.
        monkeypatch.setattr(agreement, "train", None)
        assert agreement.main([*arguments, "--no-record"]) == status
        assert agreement.main([*arguments, "--epochs", "2"]) == 2
        assert "another experiment (epochs 1, now 2)" in capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)
