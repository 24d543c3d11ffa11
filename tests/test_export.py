"""What an export writes is what the run samples, and a sentence says what it leaves out."""

import json
import os
import sys

import pytest
import torch
from small_runs import own, small
from torch import nn

import fastgan
from fastgan import cli, data, export
from fastgan.config import ConfigError
from fastgan.data import NAMES
from fastgan.export import forms
from fastgan.export.forms import LeftOut
from fastgan.run.checkpoint import CheckpointError

FILES = {"generator.pth", "generator.safetensors", "generator.pt2", "config.json", "README.md"}


@pytest.fixture
def without_onnx(monkeypatch):
    """As where it is not installed, which also saves the seconds that it takes to import."""
    monkeypatch.setitem(sys.modules, "onnx", None)


def blocks_of(place):
    """What the README's blocks make, run one after the other in its directory."""
    text = (place / "README.md").read_text()
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    before, found, samples = os.getcwd(), {}, []
    os.chdir(place)
    try:
        for block in blocks:
            # All of the same latents, which only the first block draws.
            before_it = found.get("samples")
            exec(block, found)
            if found.get("samples") is not before_it:
                samples.append(torch.as_tensor(found["samples"]).detach())
    finally:
        os.chdir(before)
    return found, samples


def test_every_form_gives_the_samples_of_the_run(here, capsys):
    for name in ("safetensors", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    from safetensors.torch import load_file

    t = small(here / "runs/a", data="digits", ema=0.5)
    t.fit(steps=3)
    t.evaluate("swd", n=20, features=nn.Flatten())
    assert cli.main(["export"]) == 0
    out, err = capsys.readouterr()
    place = here / "runs/a/export"
    assert out.splitlines()[0] == str(place) and "left out" not in out and "runs/a" in err
    assert {p.name for p in place.iterdir()} == {*FILES, "generator.onnx", "samples.png"}
    ours = t.ema.state_dict()
    for weights in (
        torch.load(place / "generator.pth"),
        load_file(place / "generator.safetensors"),
    ):
        assert weights.keys() == ours.keys()
        assert all(torch.equal(value, ours[key]) for key, value in weights.items())
    found, samples = blocks_of(place)
    assert len(samples) == 3 and found["latents"].shape == (16, 5)
    expected = t.ema.eval()(found["latents"]).detach()
    for made in samples:
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    text = (place / "README.md").read_text()
    for words in (
        "CC BY-SA 3.0",
        "swd ↓",
        "Flatten",
        "`ema` | `0.5`",
        "3 steps",
        "torch.randn(16, 5)",
    ):
        assert words in text, words
    config = json.loads((place / "config.json").read_text())
    assert config["about"]["models"]["generator"]["latent_dim"] == 5
    assert (place / "samples.png").read_bytes() == (here / "runs/a/samples.png").read_bytes()


def test_named_parts_of_latents(tmp_path):
    pytest.importorskip("onnxruntime")
    latent = {"noise": 3, "digit": "onehot:4", "code": "uniform:2:0:1"}
    t = own(tmp_path / "a", latent_dim=latent, pair=lambda: (Parts(), Scored()))
    t.fit(steps=1)
    found = export.export(tmp_path / "a", tmp_path / "b", generator=Parts())
    assert not found.left_out
    made, samples = blocks_of(tmp_path / "b")
    assert made["latents"].shape == (16, 9) and len(samples) == 2
    assert torch.equal(made["latents"][:, 3:7].sum(1), torch.ones(16))
    assert made["latents"][:, 7:].min() >= 0 and made["latents"][:, 7:].max() <= 1
    for one in samples:
        torch.testing.assert_close(one, t.generator.eval()(made["latents"]).detach())


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(9, 36)

    def forward(self, z):
        return torch.tanh(self.body(z)).view(-1, 1, 6, 6)


class Scored(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(36, 1)

    def forward(self, x):
        return self.body(x.flatten(1))


class Labelled(Parts):
    def __init__(self):
        super().__init__()
        self.labels = nn.Embedding(10, 9)

    def forward(self, z, y):
        return super().forward(z + self.labels(y))


def test_conditions(tmp_path, without_onnx):
    images = torch.randint(0, 256, (30, 1, 6, 6), dtype=torch.uint8)
    t = fastgan.Trainer(
        Labelled(), Scored(), torch.utils.data.TensorDataset(images, torch.arange(30) % 10),
        latent_dim=9, batch_size=8, device="cpu", engine="eager", console="none",
        out=tmp_path / "a",
    )  # fmt: skip
    t.fit(steps=1)
    place = tmp_path / "a" / "export"
    found = export.export(tmp_path / "a", generator=Labelled())
    assert "takes a condition, of which an export needs examples" in found.left_out["generator.pt2"]
    found = export.export(tmp_path / "a", generator=Labelled(), condition=torch.arange(10))
    assert "generator.pt2" in found.written and {"generator.onnx"} == found.left_out.keys()
    made, samples = blocks_of(place)
    expected = t.generator.eval()(made["latents"], torch.arange(16) % 10).detach()
    torch.testing.assert_close(samples[0], expected)
    with pytest.raises(ConfigError, match="condition: expected a tensor"):
        export.export(tmp_path / "a", generator=Labelled(), condition=[1])


def test_a_model_that_takes_classes(tmp_path, without_onnx):
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    rows = torch.utils.data.TensorDataset(images, torch.arange(20) % 4)
    t = fastgan.Trainer(
        None, None, data.open(rows), model="sn-resnet", width=2, latent_dim=6, batch_size=4,
        device="cpu", console="none", out=tmp_path / "a", loss="hinge",
    )  # fmt: skip
    t.fit(steps=1)
    found = export.export(tmp_path / "a")
    assert "generator.pt2" in found.written
    made, samples = blocks_of(found.place)
    classes = torch.arange(16) % 4
    assert len(samples) == 2 and torch.equal(made["condition"], classes)
    torch.testing.assert_close(samples[0], t.generator.eval()(made["latents"], classes).detach())


def test_tables(tmp_path, without_onnx):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"size": torch.randn(60).tolist(), "kind": ["a", "c"] * 30})
    fastgan.tabular.Synthesizer(
        epochs=1, batch_size=20, width=8, out=tmp_path / "a", device="cpu"
    ).fit(frame)
    found = export.export(tmp_path / "a")
    assert {"generator.pt2", "table.json"} <= found.written.keys()
    made, samples = blocks_of(found.place)
    assert len(samples) == 2 and list(made["rows"].columns) == ["size", "kind"]
    assert len(made["rows"]) == 16 and set(made["rows"]["kind"]) <= {"a", "c"}


def test_what_is_left_out_has_its_reason(tmp_path, monkeypatch):
    own(tmp_path / "a").fit(steps=1)
    found = export.export(tmp_path / "a")
    assert {"generator.pt2", "generator.onnx"} == found.left_out.keys()
    assert "pass generator=" in found.left_out["generator.pt2"]
    assert (
        "generator.pth" in found.written and "Left out" in (found.place / "README.md").read_text()
    )
    assert len(blocks_of(found.place)[0]["weights"]) > 3
    for name in ("safetensors.torch", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
    t = own(tmp_path / "b")
    t.fit(steps=1)
    found = export.export(tmp_path / "b", generator=type(t.generator)())
    assert found.left_out.keys() == {"generator.safetensors", "generator.onnx"}
    assert all("pip install 'fastgan[export]'" in why for why in found.left_out.values())
    assert "draws numbers of its own" in found.written["generator.pt2"]
    with pytest.raises(ConfigError, match="is a run's own directory"):
        export.export(tmp_path / "b", tmp_path / "b")
    (tmp_path / "b" / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        export.export(tmp_path / "b")
    assert cli.main(["export", str(tmp_path / "c")]) == 2


def test_a_program_that_is_off_is_not_written(tmp_path, without_onnx, monkeypatch):
    t = small(tmp_path / "a")
    t.fit(steps=1)
    assert "generator.pt2" in export.export(tmp_path / "a").written
    exported = forms._exported

    def wrong(network):
        before = network.module.generator
        network.module.generator = nn.Sequential(before, nn.Hardtanh(-0.5, 0.5))
        try:
            return exported(network)
        finally:
            network.module.generator = before

    monkeypatch.setattr(forms, "_exported", wrong)
    with torch.no_grad():
        t.generator.fc[-2].bias.fill_(3)
    t.save()
    found = export.export(tmp_path / "a")
    assert "off by 5.0e-01 of the largest" in found.left_out["generator.pt2"]
    assert not (found.place / "generator.pt2").exists(), "that of an earlier export is gone"

    def cannot(network):
        raise RuntimeError("it\nbranches")

    monkeypatch.setattr(forms, "_exported", cannot)
    assert export.export(tmp_path / "a").left_out["generator.pt2"] == "RuntimeError: it"


def test_weights_that_are_shared_and_things_that_are_no_tensors(tmp_path):
    pytest.importorskip("safetensors")
    shared = torch.zeros(4)
    words = forms.write_safetensors({"a": shared, "b": shared[:2]}, tmp_path / "a")
    assert "safetensors" in words and (tmp_path / "a").stat().st_size > 24
    with pytest.raises(LeftOut, match="the state dict has extra"):
        forms.write_safetensors({"a": shared, "extra": {}}, tmp_path / "b")


def test_every_named_data_set_has_its_licence():
    assert export.LICENCES.keys() == set(NAMES)
