"""docs/results.md: its blocks run."""

import sys
from pathlib import Path

import pytest

from fastgan.export import forms

DOC = Path(__file__).parents[1] / "docs" / "results.md"
if not DOC.exists():
    pytest.skip("docs/ is part of a checkout only", allow_module_level=True)


def test_every_block_runs(here, monkeypatch):
    # Seconds, which tests/test_export.py spends.
    monkeypatch.setitem(sys.modules, "onnx", None)
    blocks = [part.split("```")[0] for part in DOC.read_text().split("```python\n")[1:]]
    names = {}
    exec("\n".join(blocks), names)
    assert (here / "page.html").read_text() == names["shown"].html
    assert "<h1>shown</h1>" in names["page"].html
    assert {"generator.pth", "generator.pt2", "README.md"} <= {p.name for p in here.glob("mine/*")}


def test_it_says_what_the_code_allows():
    text = " ".join(DOC.read_text().split())
    sizes = "{}, {} and {}".format(*forms.SIZES)
    far = f"{forms.TOLERANCE:.0e}".replace("e-0", "e-")
    assert f"batches of {sizes}" in text and f"off by more than {far} of" in text
