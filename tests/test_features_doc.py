"""docs/features.md: each row says which test shows what fastgan has, and that test exists."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOC = TESTS.parent / "docs" / "features.md"
if not DOC.exists():
    pytest.skip("docs/ is part of a checkout only", allow_module_level=True)

TABLE = [line.strip("|").split("|") for line in DOC.read_text().splitlines() if line[:1] == "|"]
HEAD, ROWS = [cell.strip() for cell in TABLE[0]], TABLE[2:]


def functions(file):
    return {node.name for node in ast.parse(file.read_text()).body if hasattr(node, "name")}


@pytest.mark.parametrize("row", ROWS, ids=[row[0].strip() for row in ROWS])
def test_a_row_names_tests_that_exist(row):
    assert len(row) == len(HEAD)
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row[HEAD.index("fastgan")])
    assert named
    for file, test in named:
        assert test in functions(TESTS / file)


def test_each_system_has_a_column():
    names = ["StudioGAN", "StyleGAN3's trainer", "mimicry", "TorchGAN", "TF-GAN"]
    assert ["", "fastgan", *names, "Lightning's example", "CTGAN"] == HEAD
    assert len(ROWS) > 20
