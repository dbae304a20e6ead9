"""One engine over two processes that share its weights, as `rollout.tensor_parallel` makes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file
from actors.engine import Engine, EngineSpec, Request
from trainers.data.records import Turn

def main(folder, images, asked, out):
    weights = load_file(folder + "/model.safetensors").items()
    requests = [
        Request(tuple(Turn(**turn) for turn in turns), tuple(shown))
        for turns, shown in json.loads(asked)
    ]
    said = []
    for ranks in (1, 2):
        engine = Engine(EngineSpec(
            model_dir=folder, image_root=images, max_model_len=128, kv_cache_mib=32,
            tensor_parallel=ranks,
        ))
        answers = engine.generate(requests, temperature=0.0, max_tokens=12)
        engine.update_weights([(name, tensor * 1.25 + 0.01) for name, tensor in weights])
        answers += engine.generate(requests, temperature=0.0, max_tokens=12)
        said.append([(each.token_ids, each.logprobs) for (each,) in answers])
        engine.close()
    Path(out).write_text(json.dumps(said))

if __name__ == "__main__":  # the engine's processes import this file
    main(*sys.argv[1:])
"""


def test_two_ranks_answer_as_one_before_and_after_a_sync(tiny_model, store, samples, tmp_path):
    """Greedy answers and log-probabilities, with new weights for every name in between."""
    asked = [
        ([{"role": t.role, "text": t.text, "num_images": t.num_images} for t in s.prompt], s.images)
        for s in samples[:6]
    ]
    script, out = tmp_path / "engines.py", tmp_path / "said.json"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, tiny_model, store.root, json.dumps(asked), out],
        capture_output=True,
        text=True,
        timeout=800,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = json.loads(out.read_text())
    assert [ids for ids, _ in one] == [ids for ids, _ in two]
    for (_, alone), (_, shared) in zip(one, two, strict=True):
        np.testing.assert_allclose(alone, shared, atol=1e-5)
    assert one[:6] != one[6:]  # the sync changed what is said
