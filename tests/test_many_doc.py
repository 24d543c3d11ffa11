"""docs/many.md: every block runs as it is written."""

from pathlib import Path

import pytest

DOC = Path(__file__).parents[1] / "docs" / "many.md"
if not DOC.exists():
    pytest.skip("docs/ is part of a checkout only", allow_module_level=True)


@pytest.mark.usefixtures("here")
def test_its_blocks_run(capsys):
    blocks = [part.split("```")[0] for part in DOC.read_text().split("```python\n")[1:]]
    assert len(blocks) == 5
    names = {}
    exec("\n".join(blocks), names)
    assert [row[:2] for row in names["rows"]] == [("0", 0), ("1", 1), ("2", 2), ("3", 3)]
    assert names["samples"].shape == (1000, 2)
    assert [row["step"] for row in names["runs"].results()] == [200, 200]
    assert capsys.readouterr().out.count("member") >= 2
