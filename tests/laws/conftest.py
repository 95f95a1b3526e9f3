from __future__ import annotations

import os
from pathlib import Path

import pytest

# As the commands do, before numpy is imported: small matrices crawl on many threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "laws"


@pytest.fixture(scope="session")
def law_data() -> Path:
    """Public tables of training runs; not part of the project."""
    if not DATA.is_dir():
        pytest.skip("tables of training runs are not here")
    return DATA
