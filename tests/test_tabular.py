"""The synthesizer of tables: its game by hand, seeds, resume, files, and the command line."""

import pytest
import torch
from small_tables import SMALL, fitted, table
from torch.nn import functional as F

import fastgan
from fastgan import models, random
from fastgan.cli import main
from fastgan.config import ConfigError
from fastgan.data import DataError
from fastgan.games import surprise
from fastgan.models import CTGANDiscriminator, CTGANGenerator
from fastgan.tabular import Synthesizer, TableMethod, sample_run

pandas = pytest.importorskip("pandas")

# Networks


def test_heads_of_one_width_are_made_as_if_each_were_alone():
    heads = [("tanh", 1), ("tanh", 1), ("softmax", 2), ("softmax", 2), ("softmax", 3), ("tanh", 2)]
    g = CTGANGenerator(heads, latent_dim=4, width=6).eval()
    logits, drawn = g.logits(random.normal(0, 0, 0, (5, 4))), random.uniform(0, 1, 0, (5, 7))
    row = g.activated(logits, drawn)
    noise = -torch.log(-torch.log(drawn.double()))
    at = start = 0
    for kind, size in heads:
        part = logits[:, at : at + size].double()
        if kind == "tanh":
            expected = part.tanh()
        else:
            expected = ((part + noise[:, start : start + size]) / 0.2).softmax(1)
            start += size
        torch.testing.assert_close(row[:, at : at + size].double(), expected, rtol=1e-4, atol=1e-5)
        at += size
    assert start == g.choices == 7
    for edge in (0.0, 1.0):
        assert g.activated(logits, torch.full_like(drawn, edge)).isfinite().all()


def test_without_noise_choices_are_drawn_by_torch():
    g = CTGANGenerator([("tanh", 1), ("softmax", 3)], latent_dim=4, width=6).eval()
    z = random.normal(0, 0, 0, (50, 4))
    torch.manual_seed(0)
    first = g(z)
    assert not torch.equal(first, g(z))
    torch.manual_seed(0)
    assert torch.equal(first, g(z))


@pytest.mark.parametrize("heads", [[2, 3], [2, 2, 4], [3, 3, 3]])
def test_the_surprise_is_the_cross_entropy_of_what_was_asked_for(heads):
    parts = [("tanh", 1), ("softmax", heads[0]), *(("softmax", n) for n in heads)]
    g = CTGANGenerator(parts, latent_dim=4, width=6, condition_dim=sum(heads))
    logits = random.normal(0, 1, 0, (6, sum(size for _, size in parts)))
    condition = torch.zeros(6, sum(heads))
    expected = torch.zeros(6)
    starts = [sum(heads[:i]) for i in range(len(heads))]
    for row in range(6):
        i = row % len(heads)
        condition[row, starts[i] + row % heads[i]] = 1
        at = 1 + heads[0] + starts[i]
        expected[row] = F.cross_entropy(
            logits[row, at : at + heads[i]], torch.tensor(row % heads[i])
        )
    torch.testing.assert_close(surprise(g.blocks, logits, condition), expected)


def test_networks_are_made_again_from_their_descriptions():
    pair = (
        CTGANGenerator([("tanh", 1), ("softmax", 3)], 5, 7, 3),
        CTGANDiscriminator(4, 7, 3, pack=5),
    )
    for network in pair:
        again = models.rebuild(models.describe(network))
        again.load_state_dict(network.state_dict())
    with pytest.raises(ValueError, match="given 7 rows; use a batch_size that is a multiple of 5"):
        pair[1](torch.zeros(7, 4), torch.zeros(7, 3))


# The game


def test_the_losses_are_those_by_hand(monkeypatch):
    """Of one step that moves nothing: D's with its penalty, G's with what was asked for."""
    seen, places = {}, []
    of_d, of_g = TableMethod.d_loss, TableMethod.g_loss

    def noting(step):
        drawn = step.normal

        def normal(*shape):
            normals = drawn(*shape)
            places.append(torch.special.ndtr(normals))
            return normals

        step.normal = normal

    def d_loss(method, step):
        noting(step)
        seen["d"] = of_d(method, step)
        with torch.no_grad():
            fake = step.G.activated(step.G.logits(step.z, step.cond), places[0].clone())
        seen["of d"] = step.real, fake, step.cond
        return seen["d"]

    def g_loss(method, step):
        noting(step)
        seen["g"] = of_g(method, step)
        seen["of g"] = step.z, step.cond
        return seen["g"]

    monkeypatch.setattr(TableMethod, "d_loss", d_loss)
    monkeypatch.setattr(TableMethod, "g_loss", g_loss)
    t = Synthesizer(1, **SMALL, lr=0.0)._begun(table(), ["kind", "y"])
    g, d, pack = t.generator, t.discriminator, 4
    for module in d.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    (reported,) = t.engine.run(1)
    real, fake, cond = seen["of d"]
    assert cond.shape == (40, 5)
    expected = d(fake, cond).mean() - d(real, cond).mean()
    torch.testing.assert_close(reported[0], expected.detach(), rtol=1e-4, atol=1e-5)
    eps = places[1][::pack, :, None]
    points = eps * real.view(10, pack, -1) + (1 - eps) * fake.view(10, pack, -1)
    points = points.flatten(0, 1).requires_grad_()
    (slope,) = torch.autograd.grad(d(points, cond).sum(), points)
    penalty = 10 * (slope.reshape(10, -1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(seen["d"], expected + penalty, rtol=1e-4, atol=1e-5)
    z, cond = seen["of g"]
    asked = surprise(g.blocks, g.logits(z, cond), cond).mean()
    fake = g.activated(g.logits(z, cond), places[2].clone())
    torch.testing.assert_close(seen["g"], asked - d(fake, cond).mean(), rtol=1e-4, atol=1e-5)


def test_it_learns_two_columns_that_belong_together():
    n = 300
    where = torch.arange(n) % 2
    z = random.normal(1, 201, 0, n).double()
    frame = pandas.DataFrame(
        {"x": (where * 20 + z).numpy(), "y": ["low" if i == 0 else "high" for i in where.tolist()]}
    )
    made = (
        Synthesizer(40, batch_size=100, pac=5, embedding_dim=8, width=32, lr=5e-3)
        .fit(frame, ["y"])
        .sample(400)
    )
    right = (made["x"] > 10) == (made["y"] == "high")
    assert right.mean() > 0.9
    assert 0.3 < (made["y"] == "high").mean() < 0.7


# Its face


def test_a_seed_makes_the_same_rows_and_each_call_others():
    a, b = fitted(), fitted()
    first, second = a.sample(20), a.sample(20)
    assert list(first.columns) == ["x", "kind", "n", "y"]
    pandas.testing.assert_frame_equal(first, b.sample(20))
    pandas.testing.assert_frame_equal(second, b.sample(20))
    assert not first.equals(second)
    pandas.testing.assert_frame_equal(a.sample(9, seed=3), a.sample(9, seed=3))
    assert not fitted(seed=1).sample(20).equals(first)


def test_it_is_saved_and_loaded(tmp_path):
    s = fitted()
    s.save(tmp_path / "s.pt")
    loaded = Synthesizer.load(tmp_path / "s.pt")
    pandas.testing.assert_frame_equal(
        loaded.sample(20, "kind", "b", seed=1), s.sample(20, conditions={"kind": "b"}, seed=1)
    )
    (tmp_path / "s.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged, or not written by Synthesizer.save"):
        Synthesizer.load(tmp_path / "s.pt")
    with pytest.raises(DataError, match="none.pt: cannot be read"):
        Synthesizer.load(tmp_path / "none.pt")


def test_a_run_is_resumed_to_the_bit(tmp_path):
    whole = fitted(6)
    fitted(3, out=tmp_path / "run", ema=0.9)
    with pytest.raises(FileExistsError):
        fitted(3, out=tmp_path / "run")
    resumed = Synthesizer(6, out=tmp_path / "run", **SMALL).fit(table(), resume=True)
    straight = fitted(6, ema=0.9)
    pandas.testing.assert_frame_equal(resumed.sample(15), straight.sample(15))
    for a, b in zip(
        whole.trainer.generator.parameters(), resumed.trainer.generator.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    other = table()
    other.loc[3, "x"] = 4.0
    with pytest.raises(ValueError, match="data"):
        Synthesizer(9, out=tmp_path / "run", **SMALL).fit(other, resume=True)


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="batch_size is 41; expected a multiple of pac, 4"):
        Synthesizer(**{**SMALL, "batch_size": 41})
    s = Synthesizer(1, **SMALL)
    for ask in (lambda: s.sample(3), lambda: s.save("x.pt")):
        with pytest.raises(ConfigError, match="call fit first"):
            ask()
    with pytest.raises(ConfigError, match="out is None"):
        s.fit(table(), resume=True)
    s.fit(table())
    with pytest.raises(DataError, match="'x' is no discrete column; these are"):
        s.sample(3, "x", 1.0)


@pytest.mark.parametrize("only", ["x", "kind"])
def test_tables_of_one_kind_of_columns(only):
    made = Synthesizer(2, **SMALL).fit(table()[[only, "n"] if only == "x" else [only]]).sample(11)
    assert len(made) == 11 and made[only].notna().all()


# A run's directory


def test_rows_of_a_run_are_sampled_by_the_command_line(tmp_path, capsys):
    run = tmp_path / "run"
    s = fitted(2, out=run)
    assert (run / "table.json").exists()
    assert main(["sample", str(run), "--n", "5", "--device", "cpu"]) == 0
    rows = pandas.read_csv(__import__("io").StringIO(capsys.readouterr().out))
    assert list(rows.columns) == ["x", "kind", "n", "y"] and len(rows) == 5
    out = tmp_path / "new.csv"
    args = ["sample", str(run), "--n", "7", "--seed", "4", "--condition", "y=1", "--out", str(out)]
    assert main(args) == 0
    expected = sample_run(run, 7, seed=4, conditions={"y": 1})
    pandas.testing.assert_frame_equal(pandas.read_csv(out), expected)
    assert s.table.columns[3].categories == (0, 1)
    for wrong, told in (
        (["--condition", "y"], "expected COLUMN=VALUE"),
        (["--condition", "y=5"], "'5' is none of its categories: 0, 1"),
        (["--columns", "3"], "--columns is of pictures"),
        (["--classes", "all"], "--classes is of pictures"),
        (["--truncation", "1"], "--truncation is of pictures"),
        (["--out", "rows.png"], "rows.png is to hold rows; expected a CSV or Parquet file"),
    ):
        assert main(["sample", str(run), *wrong]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [["table"], ["train", "--data"]], ids=["table", "train"])
def test_the_command_line_trains_a_table_as_the_synthesizer_does(words, tmp_path, capsys):
    path, run = tmp_path / "t.csv", tmp_path / "run"
    table().to_csv(path, index=False)
    small = ["--batch-size", "40", "--latent-dim", "6", "--width", "8", "--device", "cpu"]
    options = ["--discrete", "kind,y", *small, "--quiet", "--engine", "eager"]
    assert main([*words, str(path), *options, "--epochs", "4", "--out", str(run)]) == 0
    assert main(["table", "sample", str(run), "--n", "6"]) == 0
    rows = pandas.read_csv(__import__("io").StringIO(capsys.readouterr().out))
    assert len(rows) == 6 and set(rows["kind"]) <= set("abc")
    s = Synthesizer(4, batch_size=40, embedding_dim=6, width=8, engine="eager", device="cpu")
    s.fit(path, ["kind", "y"])
    theirs, _ = fastgan.sampling.load_generator(run)
    for name, weight in s.trainer.generator.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], weight), name
    assert main(["train", "--resume", str(run), "--epochs", "6", "--quiet"]) == 0
    assert Synthesizer.load(run).sample(3).shape == (3, 4)


def test_any_pair_can_be_trained_on_a_table(tmp_path, capsys):
    table().to_csv(tmp_path / "t.csv", index=False)
    args = ["train", "--data", str(tmp_path / "t.csv"), "--model", "mlp", "--steps", "4"]
    assert main([*args, "--out", str(tmp_path / "run"), "--width", "8", "--quiet"]) == 0
    assert main(["sample", str(tmp_path / "run"), "--n", "6"]) == 0
    assert len(pandas.read_csv(__import__("io").StringIO(capsys.readouterr().out))) == 6


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"batch_size": 25}, "method 'ctgan' needs a batch_size that is a multiple of 10"),
        ({"model": "mlp", "batch_size": 20}, "method 'ctgan' is for the networks of model 'ctgan'"),
        ({"loss": "hinge"}, "loss is given beside a method"),
        ({"method": "ctgam"}, "method is 'ctgam'; .*did you mean 'ctgan'"),
    ],
)
def test_settings_that_a_tables_game_cannot_have(given, told):
    settings = {**fastgan.config.PRESETS["ctgan"].values, "batch_size": 40, **given}
    with pytest.raises(ConfigError, match=told):
        fastgan.Trainer(None, None, table(), **settings)
