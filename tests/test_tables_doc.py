"""docs/tables.md: its blocks run, and its table has every number."""

from pathlib import Path

import pytest

from fastgan import random
from fastgan.metrics import TABLE_METRICS

pandas = pytest.importorskip("pandas")
DOC = Path(__file__).parents[1] / "docs" / "tables.md"
if not DOC.exists():
    pytest.skip("docs/ is part of a checkout only", allow_module_level=True)


def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    age = random.uniform(1, 500, 0, 600).double().numpy()
    cities = ["Rome", "Oslo", "Lima"]
    rows = {"age": (18 + 60 * age).round(), "city": [cities[int(3 * a)] for a in age]}
    pandas.DataFrame(rows).to_csv("people.csv", index=False)
    blocks = [part.split("```")[0] for part in DOC.read_text().split("```python\n")[1:]]
    names = {}
    exec("\n".join(blocks).replace("epochs=100", "epochs=7"), names)
    assert len(pandas.read_csv("new.csv")) == 1000 and 0 < names["scores"]["shapes"] <= 1
    assert names["message"] in " ".join(DOC.read_text().split())
    assert len(names["only"]) == 20 and names["of_run"].shape == (5, 2)
    assert names["more"].trainer.step == 2 * names["run"].trainer.step
    assert names["enough"].trainer.history[-1]["shapes"] > 0.2
    assert names["enough"].trainer.step == 50


def test_the_table_has_every_number():
    named = [line.split("`")[1] for line in DOC.read_text().splitlines() if line.startswith("| `")]
    assert {*TABLE_METRICS, "too_near", "copies", "efficacy_of_real"} < set(named)
