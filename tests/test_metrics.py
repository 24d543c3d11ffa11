"""Quality: against reference implementations on shared features, and of whole runs."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_runs import QUICK, own, plain_pair, small
from torch import nn

import fastgan
from fastgan import Trainer, cli, data, metrics
from fastgan.metrics import features as features_room
from fastgan.metrics import quality as quality_room
from fastgan.metrics import small_classifier as classifier_room

FOUR = ("precision", "recall", "density", "coverage")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastgan"


def sets(n=300, m=250, width=6, shift=0.5, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    real = torch.randn(n, width, generator=drawn)
    return real, torch.randn(m, width, generator=drawn) * 0.9 + shift


# --- between sets of features --------------------------------------------------------------------


@settings(deadline=None, max_examples=12)
@given(st.integers(7, 40), st.integers(7, 40), st.integers(1, 5), st.integers(0, 99))
def test_the_four_of_the_manifold_are_those_of_plain_loops(n, m, k, seed):
    real, fake = (x.double().numpy() for x in sets(n, m, 2, 0.8, seed))

    def radii(points):
        return [sorted(np.linalg.norm(points - p, axis=1))[k] for p in points]

    between = np.linalg.norm(real[:, None] - fake[None], axis=2)
    in_real = between < np.array(radii(real))[:, None]
    in_fake = between < np.array(radii(fake))[None]
    expected = {
        "precision": in_real.any(0).mean(),
        "recall": in_fake.any(1).mean(),
        "density": in_real.sum(0).mean() / k,
        "coverage": (between.min(1) < np.array(radii(real))).mean(),
    }
    found = metrics.manifold(torch.tensor(real), torch.tensor(fake), k)
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_four_of_the_manifold_are_those_of_prdc():
    prdc = pytest.importorskip("prdc", reason="the package prdc is not installed")
    real, fake = sets(700, 600)
    expected = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    found = metrics.manifold(real, fake, 5)
    assert found == pytest.approx({name: float(expected[name]) for name in FOUR}, rel=1e-3)


def test_precision_and_recall_are_those_of_torch_fidelity():
    prc = pytest.importorskip(
        "torch_fidelity.metric_prc", reason="the package torch-fidelity is not installed"
    )
    real, fake = sets(700, 600)
    precision, recall = prc.calculate_precision_recall_part(fake.double(), real.double(), 3)
    found = metrics.manifold(real, fake, 3)
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall), rel=1e-3)


def test_sets_that_are_the_same_and_sets_apart():
    real, _ = sets()
    near = metrics.manifold(real, real + 1e-9)
    assert near["precision"] == near["recall"] == near["coverage"] == 1
    far = metrics.manifold(real, real + 100)
    assert far == dict.fromkeys(FOUR, 0.0)
    assert metrics.sliced_wasserstein(real, real) == 0
    with pytest.raises(ValueError, match="expected more than k=5"):
        metrics.manifold(real[:5], real)
    with pytest.raises(ValueError, match=r"real is \[300, 6\] and fake \[300, 5\]"):
        metrics.manifold(real, real[:, :5])


def test_sliced_wasserstein_of_a_shift_and_of_a_plane():
    # Along a line at angle a, a shift by s is one by s cos a, of which the mean square is s^2 / 2.
    real = torch.randn(400, 2)
    moved = real + torch.tensor([3.0, 0.0])
    assert metrics.sliced_wasserstein(real, moved, 2000) == pytest.approx(
        3 / math.sqrt(2), rel=0.05
    )
    line = torch.tensor([[0.0], [1.0], [5.0]])
    other = torch.tensor([[2.0], [7.0], [0.0]])  # sorted: 0, 2, 7
    expected = math.sqrt((0 + 1 + 4) / 3)
    assert metrics.sliced_wasserstein(line, other) == pytest.approx(expected)
    # The first of the longer set.
    assert metrics.sliced_wasserstein(torch.cat((line, line + 9)), other) == pytest.approx(expected)


def test_the_nearest_are_the_nearest(monkeypatch):
    monkeypatch.setattr("fastgan.metrics.sets._ROWS", 7)
    held, samples = torch.randn(40, 1, 3, 3), torch.randn(5, 1, 3, 3)
    where, far = metrics.nearest(samples, held, 4)
    distances = (samples[:, None] - held[None]).flatten(2).norm(dim=2)
    expected = distances.sort(1)
    assert torch.equal(where, expected.indices[:, :4])
    assert torch.allclose(far.float(), expected.values[:, :4])
    assert metrics.nearest(samples, held[:2], 4)[0].shape == (5, 2)


def torchmetrics():
    return pytest.importorskip("torchmetrics", reason="the package torchmetrics is not installed")


def by_hand(real, fake):
    real, fake = real.double().numpy(), fake.double().numpy()
    a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    return float(((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root)


def test_fid_and_kid_of_a_run_are_those_of_their_definitions():
    torchmetrics()
    t = own(pair=plain_pair, data=torch.rand(200, 1, 6, 6) * 2 - 1)
    found = t.evaluate(("fid", "kid"), n=150, features=nn.Flatten())
    real = torch.cat([x for x, _ in features_room.batches(t.data, 150, 64)]).flatten(1)
    same = {name: t.evaluate(("fid", "kid"), n=150, features=nn.Flatten())[name] for name in found}
    assert {**same, "seconds": 0} == {**found, "seconds": 0}
    fake = torch.cat([x for x, _ in quality_room.fakes(t, 150, 256)]).flatten(1)
    assert found["fid"] == pytest.approx(by_hand(real, fake), rel=1e-3)
    x, y = real.double(), fake.double()
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    n = len(x)
    mmd = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (n * (n - 1)) - 2 * xy.mean()
    assert found["kid"] == pytest.approx(float(mmd), rel=1e-3)


def test_fid_and_kid_of_a_run_are_those_of_torch_fidelity():
    torchmetrics()
    why = "the package torch-fidelity is not installed"
    fid = pytest.importorskip("torch_fidelity.metric_fid", reason=why)
    kid = pytest.importorskip("torch_fidelity.metric_kid", reason=why)
    t = own(pair=plain_pair, data=torch.rand(200, 1, 6, 6) * 2 - 1)
    found = t.evaluate(("fid", "kid"), n=150, features=nn.Flatten())
    real = torch.cat([x for x, _ in features_room.batches(t.data, 150, 64)]).flatten(1).double()
    fake = torch.cat([x for x, _ in quality_room.fakes(t, 150, 256)]).flatten(1).double()
    both = map(fid.fid_features_to_statistics, (real, fake))
    expected = fid.fid_statistics_to_metric(*both, verbose=False)
    assert found["fid"] == pytest.approx(expected[fid.KEY_METRIC_FID], rel=1e-3)
    # Of all samples at once, which of them are drawn makes no difference.
    expected = kid.kid_features_to_metric(
        real, fake, kid_subsets=1, kid_subset_size=150, verbose=False
    )
    assert found["kid"] == pytest.approx(expected[kid.KEY_METRIC_KID_MEAN], rel=1e-3)


def test_without_torchmetrics_a_sentence_says_how(monkeypatch):
    import builtins
    import importlib.util

    real_import, find = builtins.__import__, importlib.util.find_spec

    def absent(name, *rest):
        if name.startswith("torchmetrics"):
            raise ImportError("No module named 'torchmetrics'")
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *r: None if n == "torchmetrics" else find(n, *r)
    )
    t = own()
    with pytest.raises(ValueError, match=r"pip install 'fastgan\[metrics\]'.*precision, recall"):
        t.evaluate("fid", features=nn.Flatten())
    assert set(FOUR) < set(t.evaluate(features=nn.Flatten())), "the others are computed"
    assert "fid" not in t.evaluate(features=nn.Flatten())


# --- of a run ------------------------------------------------------------------------------------


def test_an_evaluation_leaves_the_run_as_it_is():
    t, twin = own(), own()
    t.fit(steps=5)
    state = torch.get_rng_state()
    found = t.evaluate(("precision", "swd"), features=nn.Flatten())
    assert list(found) == ["precision", "swd", "n", "features", "seconds"]
    assert found["n"] == 50 and found["features"] == "Flatten" and t.generator.training
    assert torch.equal(torch.get_rng_state(), state)
    t.fit(steps=10)
    twin.fit(steps=10)
    for mine, other in zip(t.generator.parameters(), twin.generator.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_what_was_found_is_kept_beside_the_run(tmp_path, caplog):
    t = small(tmp_path / "a")
    t.fit(steps=1)
    first = t.evaluate("swd", n=20, features=nn.Flatten())
    t.fit(steps=2)
    t.evaluate("recall", n=20, features=nn.Flatten())
    lines = [json.loads(x) for x in (t.out / "quality.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "data": t.data.name, **first}
    assert lines[1]["step"] == 2 and "recall" in lines[1] and "swd" not in lines[1]
    (t.out / "quality.jsonl").unlink()
    (t.out / "quality.jsonl").mkdir()
    assert t.evaluate("swd", n=20, features=nn.Flatten())["n"] == 20
    assert "what was measured is not kept: " in caplog.text
    small(log_every=1).evaluate("swd", n=20, features=nn.Flatten())


def test_what_cannot_be_measured_is_said_before_features_are_made(monkeypatch):
    monkeypatch.setattr(quality_room, "_of_first", lambda *_: pytest.fail("features were made"))
    with pytest.raises(ValueError, match="takes no classes"):
        own().evaluate("swd", features=nn.Flatten(), per_class=True)


def test_names_and_features_that_are_none():
    t = own()
    with pytest.raises(ValueError, match="metrics: 'fdi'; expected of fid.*did you mean"):
        t.evaluate("fdi")
    with pytest.raises(ValueError, match="features is a int"):
        t.evaluate("swd", features=3)
    with pytest.raises(ValueError, match="expected a tensor .n, d."):
        t.evaluate("swd", features=nn.Flatten(0))
    with pytest.raises(ValueError, match="takes no classes"):
        t.evaluate("swd", features=nn.Flatten(), per_class=True)
    with pytest.raises(ValueError, match="label agreement needs a generator"):
        t.evaluate("agreement", features=nn.Flatten())


def test_inception_says_which_file_and_where(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(ValueError) as caught:
        own().evaluate("swd")
    said = str(caught.value)
    assert features_room.INCEPTION in said and str(tmp_path / "hub/checkpoints") in said
    assert "features=" in said and "\n" not in said


class Counting(nn.Flatten):
    calls = 0

    def forward(self, x):
        Counting.calls += len(x)
        return super().forward(x)


def test_features_of_the_data_are_kept_until_something_changes(cache, monkeypatch):
    t = own()

    def made(features, t=t):
        before = Counting.calls
        t.evaluate("swd", n=40, features=features)
        return Counting.calls - before

    assert made(Counting()) == 80 and made(Counting()) == 40
    assert len(list((cache / "features").iterdir())) == 1
    scaled = nn.Sequential(Counting(), nn.Linear(36, 4))
    assert made(scaled) == 80 and made(scaled) == 40
    with torch.no_grad():
        scaled[1].weight.mul_(2)
    assert made(scaled) == 80, "other weights"
    assert made(Counting(), own(data=torch.rand(50, 1, 6, 6) * 2 - 1)) == 80, "other data"
    for file in (cache / "features").iterdir():
        file.write_bytes(b"no")
    assert made(Counting()) == 80, "a damaged file is made again"


def test_batches_are_each_of_the_data_once():
    one = data.open((torch.arange(10.0)[:, None], torch.arange(10)))
    parts = list(features_room.batches(one, 7, 4))
    assert [len(x) for x, _ in parts] == [4, 3] == [len(c) for _, c in parts]
    seen = torch.cat([x for x, _ in parts])[:, 0]
    assert len(seen.unique()) == 7
    everything = torch.cat([x for x, _ in features_room.batches(one, 10, 4)])
    assert everything[:, 0].sort().values.tolist() == list(range(10))


# --- classes -------------------------------------------------------------------------------------


def stripes(n=400):
    """Images of two classes that a glance tells apart."""
    labels = torch.arange(n) % 2
    images = torch.randint(0, 60, (n, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    images[labels == 0, :, :14] += 150
    images[labels == 1, :, 14:] += 150
    return images.to(torch.uint8), labels


class Stripes(nn.Module):
    """Makes the class that it is asked for, but for a share."""

    def __init__(self, wrong):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))
        self.wrong = wrong

    def forward(self, z, label):
        upper = (label == 0) ^ (torch.arange(len(z)) % 4 < self.wrong)
        half = torch.ones(len(z), 1, 28, 28) * -0.8
        half[:, :, :14] = torch.where(upper, self.level, -0.8)[:, None, None, None]
        half[:, :, 14:] = torch.where(upper, -0.8, self.level)[:, None, None, None]
        return half + 0.05 * z[:, :1, None, None].clamp(-2, 2)


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 1))

    def forward(self, x, label):
        return self.body(x)


def striped(wrong, monkeypatch):
    monkeypatch.setattr(classifier_room, "_STEPS", 25)
    opened = data.open(stripes())
    opened.classes = ("upper", "lower")
    return Trainer(Stripes(wrong), Scores(), opened, **QUICK)


def test_a_classifier_is_trained_once_and_tells_how_well_labels_agree(monkeypatch, cache, caplog):
    t = striped(0, monkeypatch)
    found = t.evaluate(("agreement", "swd", "coverage"), n=200, per_class=True)
    assert found["agreement"] == 1 and "training a small classifier" in caplog.text
    assert set(found["per_class"]) == {"upper", "lower"}
    for values in found["per_class"].values():
        assert values["agreement"] == 1 and set(values) == {"agreement", "swd", "coverage"}
    caplog.clear()
    half = striped(2, monkeypatch).evaluate("agreement", n=200)
    assert abs(half["agreement"] - 0.5) < 0.02 and "training" not in caplog.text
    made = metrics.classifier(t.data)
    assert float(made.accuracy) == 1 and len(list((cache / "classifiers").iterdir())) == 1
    # Anew, the same network.
    (file,) = (cache / "classifiers").iterdir()
    file.write_bytes(b"no")
    again = metrics.classifier(t.data)
    assert "is damaged" in caplog.text
    for mine, other in zip(made.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_without_labels_of_their_own_images_have_the_classifier_of_the_digits(monkeypatch):
    monkeypatch.setattr(classifier_room, "_STEPS", 2)
    images, _ = stripes()
    made = features_room.features_of(data.open(images))
    assert not made.classes and made.network.head.out_features == 10
    with pytest.raises(ValueError, match=r"the classifier is of samples \[1, 28, 28\]"):
        metrics.classifier(data.open(torch.zeros(4, 3, 8, 8)))


def test_the_inception_score_is_that_of_its_definition(monkeypatch):
    torchmetrics()
    t = striped(0, monkeypatch)
    logits = nn.Linear(784, 3)
    made = metrics.Features("mine", nn.Flatten(), logits)
    found = t.evaluate("is", n=40, features=made)["is"]
    assert 1 <= found <= 3
    with pytest.raises(ValueError, match="the Inception score needs classes"):
        t.evaluate("is", n=40, features=nn.Flatten())


# --- the command and the picture -----------------------------------------------------------------


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(classifier_room, "_STEPS", 2)
    out = tmp_path / "run"
    small(out, data="digits", steps=2).fit()
    arguments = ["evaluate", str(out), "--metrics", "swd,precision", "--n", "60"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "swd " in printed and "precision " in printed and "n 60" in printed
    picture = tmp_path / "near.png"
    assert cli.main([*arguments, "--json", "--neighbours", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"swd", "precision", "n", "features", "seconds"}
    assert Image.open(picture).size == (8 * 58 + 2, 8 * 58 + 2)
    assert cli.main(["evaluate", str(out), "--metrics", "nothing"]) == 2
    assert "metrics: 'nothing'" in capsys.readouterr().err


def test_what_was_learned_by_heart_stands_beside_the_sample(tmp_path):
    held = torch.rand(60, 1, 6, 6) * 2 - 1

    class ByHeart(nn.Module):
        def __init__(self):
            super().__init__()
            self.images = nn.Parameter(held[[7, 33]].clone())

        def forward(self, z):
            return self.images[torch.arange(len(z)) % 2]

    t = own(pair=lambda: (ByHeart(), nn.Sequential(nn.Flatten(), nn.Linear(36, 1))), data=held)
    metrics.draw_neighbours(t, tmp_path / "a.png", n=2, k=2)
    sheet = torch.from_numpy(np.array(Image.open(tmp_path / "a.png")))
    side = 6 * (64 // 6) + 2
    tile = [sheet[side * r + 2 : side * (r + 1), 2:] for r in range(2)]
    for row in tile:
        first, second, third = (row[:, side * c : side * (c + 1) - 2] for c in range(3))
        assert torch.equal(first, second) and not torch.equal(second, third)
    points = own(pair=lambda: (nn.Linear(5, 2), nn.Linear(2, 1)), data=torch.rand(20, 2))
    with pytest.raises(ValueError, match="neighbours are drawn of images"):
        metrics.draw_neighbours(points, tmp_path / "b.png")


def test_vectors_are_compared_by_their_values():
    t = Trainer(None, None, "ring8", model="points", **{**QUICK, "latent_dim": 2})
    found = fastgan.metrics.evaluate(t, ("swd", "coverage"), 200)
    assert found["features"] == "the values" and found["swd"] > 0.1
