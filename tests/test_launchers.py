"""Beside other programs: Accelerate's launcher, a LightningModule."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastgan
from fastgan.run import checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples" / "with_others"
PACKAGE = str(Path(fastgan.__file__).resolve().parents[1])
in_checkout = pytest.mark.skipif(
    not EXAMPLES.exists(), reason="examples/ is part of a checkout only"
)


@in_checkout
def test_accelerate_launches_ranks_of_one_run(tmp_path):
    pytest.importorskip("accelerate")
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         str(EXAMPLES / "accelerate_run.py"), "--steps", "3", "--out", str(out)],
        env={**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes: ") == 1
    one = fastgan.Trainer(
        None, None, "digits", batch_size=256, engine="eager", device="cpu", console="none"
    )
    one.fit(steps=3)
    saved = checkpoint.load(checkpoint.find(out))["generator"]
    for name, value in one.generator.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-5)


@in_checkout
def test_a_lightning_module_takes_our_steps(tmp_path):
    lightning = pytest.importorskip("lightning")
    spec = importlib.util.spec_from_file_location("lightning_run", EXAMPLES / "lightning_run.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    def module():
        samples = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(1)
        g = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
        d = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
        return example.GAN(
            fastgan.Trainer(g, d, samples, batch_size=5, latent_dim=4, ema=0.9, device="cpu")
        )

    def trainer(epochs):
        return lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip

    whole, first, second = module(), module(), module()
    loop = trainer(4)
    loop.fit(whole)
    assert whole.gan.step == 16 and loop.callback_metrics["d_loss"].isfinite()
    begun = trainer(2)
    begun.fit(first)
    begun.save_checkpoint(tmp_path / "a.ckpt")
    trainer(4).fit(second, ckpt_path=tmp_path / "a.ckpt", weights_only=False)
    assert second.gan.step == 16
    straight = module()
    straight.gan.fit(steps=16)
    for other in (second, straight):
        for (name, a), b in zip(
            whole.state_dict().items(), other.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), name
