"""docs/quality.md: its blocks run, and its table is that of the code."""

from pathlib import Path

import pytest

from fastgan import metrics
from fastgan.statistics import MEASURE_NAMES

DOC = Path(__file__).parents[1] / "docs" / "quality.md"
if not DOC.exists():
    pytest.skip("docs/ is part of a checkout only", allow_module_level=True)


def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blocks = [part.split("```")[0] for part in DOC.read_text().split("```python\n")[1:]]
    names = {}
    exec("\n".join(blocks), names)
    assert names["watch"].raised == [] and names["trainer"].step == 200
    assert set(names["found"]) == {"precision", "recall", "swd", "n", "features", "seconds"}
    assert names["trainer"].evaluate("swd", n=50, features=names["mine"])["features"] == "mine"


def test_the_table_has_every_metric():
    rows = [line.split("|")[1:3] for line in DOC.read_text().splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in row[0].replace("`", "").replace(",", " ").split()}
    assert {*MEASURE_NAMES} <= told
    rows = [row for row in rows if not any(f"`{name}`" in row[0] for name in MEASURE_NAMES)]
    assert [name.strip(" `") for name, _ in rows] == list(metrics.METRICS)
    for (_, help), metric in zip(rows, metrics.METRICS.values(), strict=True):
        assert metric.help.startswith(help.strip())
