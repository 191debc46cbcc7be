"""What holds for every test of a figure."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """No test of a figure leaves one in pyplot's hands."""
    yield
    assert plt.get_fignums() == []
