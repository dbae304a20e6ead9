"""A large file is read in little memory: a process of its own reads it and is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NUM_IMAGES = 50
MEASURE = """
import json, re, sys
from pathlib import Path
from cluster.sources import FilePrompts
from trainers.data.datasets import SampleFile
from trainers.data.images import ImageStore
from trainers.data.sample_index import index_samples
from trainers.data.tally import Tally

def peak_mib():
    # Not ru_maxrss, which begins with what the parent had when it forked.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

path, before = Path(sys.argv[1]), peak_mib()
file = SampleFile(path, ImageStore(path.parent / "store"))
prompts = FilePrompts(index_samples(file, Tally(), 0.05), 96, seed=0)
ids = [sample.id for number in range(1, 6) for sample in prompts.round(number)]
print(json.dumps([before, peak_mib(), len(prompts.samples), ids]))
"""


def row(number: int) -> dict[str, Any]:
    """About 350 bytes of text: a million of them are a file of 400 MB."""
    return {
        "prompt": f"describe the image . {number} " + "and what else is there ? " * 4,
        "images": [f"{number % NUM_IMAGES}.png"],
        "chosen": "there is a red circle left of a blue square . " * 3,
        "rejected": "there is a green circle . " * 3,
    }


def write(path: Path, rows: int) -> None:
    for number in range(NUM_IMAGES):
        Image.new("RGB", (8, 8), (number, 80, 90)).save(path.parent / f"{number}.png")
    if path.suffix == ".parquet":
        write_parquet(path, rows)
        return
    with path.open("w") as file:
        file.writelines(json.dumps(row(number)) + "\n" for number in range(rows))


def write_parquet(path: Path, rows: int) -> None:
    """One row group: the worst case for a reader that wants single rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(name: str) -> Iterator[Any]:
        return (row(number)[name] for number in range(rows))

    table = pa.table({name: pa.array(column(name), size=rows) for name in row(0)})
    pq.write_table(table, path, row_group_size=rows)
    assert pq.ParquetFile(path).num_row_groups == 1


def measured(path: Path, rows: int) -> tuple[int, int]:
    """MiB of the reading process before it read and at its peak, after it was found right."""
    write(path, rows)
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    before, peak, found, ids = json.loads(done.stdout)
    assert found == rows
    assert len(set(ids)) == len(ids) == 5 * 96
    # drawn from the whole file, not from its beginning
    assert max(int(id.removeprefix("rows-")) for id in ids) > 0.9 * rows
    return before, peak


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_fifty_thousand_rows_take_little(suffix: str, tmp_path: Path) -> None:
    before, peak = measured(tmp_path / f"rows.{suffix}", 50_000)
    # Arrow itself takes 50 MiB; the rows, as Python objects, would take 80.
    assert peak - before < (30 if suffix == "jsonl" else 90)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_million_rows_take_less_than_a_gibibyte(suffix: str, tmp_path: Path) -> None:
    _, peak = measured(tmp_path / f"rows.{suffix}", 1_000_000)
    assert peak < 1024
