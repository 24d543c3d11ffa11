"""train_gan(), the call of the reference program."""

import logging
import os
import re
import signal

import pytest
import torch

from fastgan import data
from fastgan.models import Discriminator, Generator
from fastgan.train_gan import train_gan


def test_train_gan_is_the_reference_programs_call(tmp_path, capsys):
    g, d = train_gan(2, 64, 20, data="digits", directory=tmp_path, engine="eager", device="cpu")
    printed = capsys.readouterr().out.splitlines()
    number = r"\d+\.\d{4}"
    for line, step in zip(printed, (21, 79), strict=True):  # of 158 steps, the 100th and the last
        assert re.fullmatch(
            rf"Epoch \[2/2\], Step \[{step}/79\], D_loss: {number}, G_loss: {number}", line
        )
    saved = torch.load(tmp_path / "generator.pth", weights_only=True)
    Generator(20).load_state_dict(saved, strict=True)
    assert torch.equal(saved["fc.0.weight"], g.fc[0].weight)
    saved = torch.load(tmp_path / "discriminator.pth", weights_only=True)
    Discriminator().load_state_dict(saved, strict=True)
    assert torch.equal(saved["model.0.weight"], d.model[0].weight)


def test_train_gan_without_mnist_says_so_loudly(tmp_path, monkeypatch, caplog):
    known = data.open

    def offline(source="digits", **options):
        if source == "mnist":
            raise data.DataError("mnist: the download failed")
        return known(source, **options)

    monkeypatch.setattr(data, "open", offline)
    with caplog.at_level(logging.WARNING):
        g, _ = train_gan(1, directory=tmp_path, engine="eager", device="cpu")
    told = [r.getMessage() for r in caplog.records if "NO MNIST" in r.getMessage()]
    assert len(told) == 1 and "the download failed" in told[0] and "data=" in told[0]
    assert g(torch.zeros(1, 100)).shape == (1, 1, 28, 28)


def test_ctrl_c_in_train_gan_saves_the_networks(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.print", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train_gan(
            50, 64, 8, data="digits", directory=tmp_path, engine="eager", device="cpu", log_every=5
        )
    assert (tmp_path / "generator.pth").exists() and (tmp_path / "discriminator.pth").exists()


def test_a_set_of_few_steps_gets_a_line_and_a_word_why(tmp_path, capsys, caplog):
    few = torch.zeros(20, 1, 6, 6, dtype=torch.uint8)
    train_gan(3, data=few, directory=tmp_path, engine="eager", device="cpu")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Epoch [3/3], Step [1/1], D_loss: ")
    assert "all 3 steps are fewer than log_every=100, so one line comes at the end" in caplog.text


def test_the_directory_is_home_where_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "made").mkdir()
    few = torch.zeros(8, 1, 6, 6, dtype=torch.uint8)
    train_gan(1, data=few, directory="~/made", engine="eager", device="cpu")
    assert (tmp_path / "made" / "generator.pth").exists()


def test_any_setting_and_a_misspelt_one(tmp_path):
    few = torch.zeros(8, 1, 6, 6, dtype=torch.uint8)
    g, d = train_gan(
        1, 4, 5, data=few, directory=tmp_path, engine="eager", device="cpu", loss="hinge", width=3
    )
    assert g.fc[0].out_features == 3 and isinstance(d.model[-1], torch.nn.Identity)
    with pytest.raises(ValueError, match="'learning_rate' is 'lr' here"):
        train_gan(1, data=few, directory=tmp_path, learning_rate=1.0)


@pytest.mark.parametrize("wrong", ["3", 0, None, 1.5])
def test_a_wrong_number_of_epochs_leaves_earlier_networks_alone(tmp_path, wrong):
    (tmp_path / "generator.pth").write_bytes(b"trained before")
    few = torch.zeros(8, 1, 6, 6, dtype=torch.uint8)
    with pytest.raises(ValueError, match="epochs is .*; expected an integer of at least 1$"):
        train_gan(wrong, 4, 5, data=few, directory=tmp_path, engine="eager", device="cpu")
    assert (tmp_path / "generator.pth").read_bytes() == b"trained before"
    assert not (tmp_path / "discriminator.pth").exists()
