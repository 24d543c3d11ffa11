"""tools/same_bits.py: equal runs have equal sums, and a difference is named."""

import json

import pytest
import same_bits
import torch
from torch import nn


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def call(*arguments):
    return same_bits.main(["--steps", "6", "--pairs", "dropout,elu", *map(str, arguments)])


def test_the_same_source_has_the_same_bits_and_another_has_not(tmp_path, capsys):
    path = tmp_path / "before.json"
    assert call("--write", path) == 0
    before = json.loads(path.read_text())
    assert set(before["runs"]) == {"dropout", "elu"} and before["steps"] == 6
    runs = before["runs"]["dropout"]
    assert set(runs) == {f"{e}, {t}" for e in same_bits.ENGINES for t in same_bits.THREADS}
    assert all(set(sums) == set(same_bits.PARTS) for sums in runs.values() if sums)
    # Fused is one order of additions for every number of threads.
    assert runs["fused, 1"] == runs["fused, 2"]
    assert runs["eager, 1"] and runs["eager, 1"] != runs["fused, 1"]
    assert call("--compare", path) == 0
    assert call("--compare", path, "--measured") == 0
    taken = sum(sums is not None for run in before["runs"].values() for sums in run.values())
    assert f"{taken} of {taken} runs are equal bit for bit" in capsys.readouterr().out

    before["runs"]["dropout"]["eager, 1"]["moments"] = "0"
    before["runs"]["elu"]["fused, 1"] = {**runs["eager, 1"], "losses": "0"}
    path.write_text(json.dumps(before))
    assert call("--compare", path) == 1
    said = capsys.readouterr().out
    assert "DIFFERS: dropout: eager, 1: other moments\n" in said
    assert "as intended: elu: fused, 1: " in said

    before["machine"]["torch"] = "1.0"
    path.write_text(json.dumps(before))
    assert call("--compare", path) == 2
    assert "cannot be compared: machine was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pairs", "nothing", "--write", "x"], "'nothing' is none of"),
        (["--steps", "0", "--write", "x"], "expected at least 1"),
        ([], "required"),
    ],
)
def test_bad_arguments(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        same_bits.main(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_a_sum_sees_every_bit_and_the_shape():
    x = torch.zeros(2, 3)
    sums = {same_bits.digest([t]) for t in (x, -x, x.view(3, 2), x.double(), x.view(-1))}
    assert len(sums) == 5
    assert same_bits.digest([torch.tensor(1), 2]) == same_bits.digest([torch.tensor(1), 2])


def test_the_pairs_differ_in_what_they_are_made_of():
    seen = {"depths": set(), "layers": set()}
    for pair in same_bits.PAIRS.values():
        networks = pair.build()
        seen["layers"] |= {type(m) for network in networks for m in network.modules()}
        seen["depths"] |= {sum(type(m) is nn.Linear for m in n.modules()) for n in networks}
    assert seen["layers"] >= {nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout, nn.ELU, nn.Conv2d}
    assert seen["depths"] >= {0, 1, 2, 3, 4, 5}
    given = [pair.settings for pair in same_bits.PAIRS.values()]
    for name in ("d_steps", "ema", "label_smoothing", "penalties", "lr_schedule", "optimizer"):
        assert any(name in settings for settings in given)
    assert any(p.images[0] % p.settings["batch_size"] for p in same_bits.PAIRS.values())
