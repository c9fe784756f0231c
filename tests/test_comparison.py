"""The comparison with other projects: every cell names its source, or says that it is unknown."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = json.loads((ROOT / "docs" / "comparison.json").read_text("utf-8"))


def test_every_cell_has_version_date_and_file_or_is_unknown() -> None:
    for project, cells in TABLE["projects"].items():
        assert set(cells) == set(TABLE["columns"]), project
        for column, cell in cells.items():
            place = project, column
            if cell["value"] == "unknown":
                assert set(cell) == {"value"}, place
            else:
                assert set(cell) == {"value", "version", "date", "file"}, place
                assert all(cell.values()), place


def test_what_is_said_of_kdcache_lies_in_files_that_are_there() -> None:
    for cell in TABLE["projects"]["kdcache"].values():
        assert (ROOT / cell["file"]).is_file()
