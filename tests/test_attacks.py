"""Files made to exhaust memory or processor are refused, or take no more than SECURITY.md says."""

import re
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parent.parent / "research/benchmarks"))
import attacks


ROOT = Path(__file__).parent.parent
MOST_MIB, MOST_SECONDS = 1024, 10
REFUSED = [
    "GIF of 13300 x 13300", "animated GIF of 8000 x 8000", "grey PNG of 16000 x 16000",
    "the same with 100 scans", "WebP of 8190 x 8190", "JPEG 2000 of 8190 x 8190", "icon of 13300 x 13300",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacks")
    attacks.write_all(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
@pytest.mark.parametrize("road", attacks.ROADS)
def test_no_file_takes_a_gigabyte_or_ten_seconds(road, folder):
    for name, cost in attacks.costs(road, folder):
        assert cost.mib < MOST_MIB, f"{name}: {cost.mib:.0f} MiB"
        assert cost.seconds < MOST_SECONDS, f"{name}: {cost.seconds:.1f} seconds"
        assert bool(cost.said) == (name in REFUSED), f"{name}: {cost.said}"
        if cost.said:
            assert re.search(r"\d[\d,]* pixels", cost.said), cost.said


def test_the_table_names_every_attack():
    text = (ROOT / "SECURITY.md").read_text()
    assert all(f"| {name} |" in text for name in attacks.ATTACKS)
