"""The table of docs/faults.md is made from the lines that the cases print."""

import pytest

from tests.fault.__main__ import BEGIN, END, PAGE, rows, written
from tests.support.fault_publisher import Comparison


def test_a_line_of_a_case_becomes_a_row() -> None:
    counts = Comparison(12_732, 12_732, 12_603, 129, 0, 0, 0, 0)
    line = f"test_killed_often: {counts}, duplicates refused 1092, starts"
    assert list(rows([f"{line} 1, recovered in 4.2 s (seed 7)\n", f"{line} 6 (seed 7)"])) == [
        "| killed often | 12 732 | 12 603 | 129 | 0 | 0 | 1 092 | 4.2 |\n",
        "| killed often | 12 732 | 12 603 | 129 | 0 | 0 | – | – |\n",
    ]
    with pytest.raises(ValueError, match="not a line of a case"):
        list(rows(["something else"]))


def test_the_page_has_its_marks_and_only_what_is_between_them_changes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    made = written(page, "X\n")
    assert made.partition(BEGIN)[0] == page.partition(BEGIN)[0]
    assert made.partition(END)[2] == page.partition(END)[2]
    assert f"{BEGIN}X\n{END}" in made
    with pytest.raises(ValueError, match="has lost the marks"):
        written("no marks", "X\n")
