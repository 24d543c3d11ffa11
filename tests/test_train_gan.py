"""train_gan(), the call of the reference program."""

import logging
import os
import re
import signal

import pytest
import torch
from fastgan.classic import train_gan

from fastgan import data
from fastgan.models import Discriminator, Generator


def test_train_gan_is_the_reference_programs_call(tmp_path, capsys):
    g, d = train_gan(2, 64, 20, data="digits", directory=tmp_path, engine="eager", device="cpu")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1  # 158 steps
    number = r"\d+\.\d{4}"
    assert re.fullmatch(
        rf"Epoch \[2/2\], Step \[21/79\], D_loss: {number}, G_loss: {number}", printed[0]
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
