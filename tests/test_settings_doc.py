"""docs/settings.md is what the settings are."""

from pathlib import Path

import pytest

from fastgan import Config, config, data
from fastgan.data.table import SUFFIXES

DOC = Path(__file__).parents[1] / "docs" / "settings.md"


@pytest.mark.skipif(not DOC.parent.exists(), reason="docs/ is part of a checkout only")
def test_the_table_is_current():
    assert config.table() in DOC.read_text(), "`fastgan settings` prints the table for docs/"


def test_every_setting_has_a_row():
    rows = config.table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(Config.__dataclass_fields__)
    assert all(row.replace("\\|", "").count("|") == 6 for row in rows)


def test_data_says_every_name_and_every_kind_of_table():
    (row,) = [row for row in config.table().splitlines() if row.startswith("| `data`")]
    assert not [word for word in (*data.NAMES, *SUFFIXES) if word not in row]
