"""The examples of the guide to parallelism say what the simulator says."""

import doctest
from pathlib import Path


def test_examples_of_the_guide_run() -> None:
    guide = Path(__file__).parents[1] / "docs" / "parallelism.md"
    result = doctest.testfile(str(guide), module_relative=False, optionflags=doctest.REPORT_NDIFF)
    assert result.attempted > 20
    assert result.failed == 0
