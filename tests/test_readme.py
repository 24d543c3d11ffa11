"""The example in README.md runs as it stands there."""

from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
if not README.exists():
    pytest.skip("README.md is part of a checkout only", allow_module_level=True)


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = README.read_text().split("```python\n")[1].split("```")[0]
    assert "fit(epochs=20)" in code
    names = {}
    exec(code.replace("fit(epochs=20)", "fit(steps=30)"), names)
    assert names["images"].shape == (16, 1, 28, 28)
    assert (tmp_path / "runs/mine/checkpoint.pt").exists()
    # What its comment promises.
    fastgan, trainer = names["fastgan"], names["trainer"]
    resumed = fastgan.Trainer.resume("runs/mine", names["G"], names["D"])
    assert resumed.step == trainer.step == 30
    assert torch.equal(resumed.sample(16), names["images"])
