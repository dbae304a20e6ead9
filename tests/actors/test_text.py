"""The text model on vLLM: replies by slot, repeatable, None for what does not fit."""

from __future__ import annotations

import pytest
import ray

from actors.text import TextSpec

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def writer(shared_session, text_model):
    actor = shared_session.actor("writer")
    spec = TextSpec(model_dir=text_model, max_model_len=192, max_tokens=120, temperature=0.3)
    ray.get(actor.load.remote(spec))
    return actor


def test_replies_come_by_slot_and_are_read(writer):
    from trainers.correction_text import read_turns

    requests = ["what is wrong", "x" * 100, "is it a dog"]
    first = ray.get(writer.reply.remote(requests, seed=1))
    assert first == ray.get(writer.reply.remote(requests, seed=1))
    assert first[1] is None  # 100 tokens and 120 for the reply
    for text in (first[0], first[2]):
        assert read_turns(text, max_turns=6, yes="yes", no="no") == [
            ("is there a blue square ?", "yes"),
            ("is there a red circle ?", "no"),
        ]


def test_its_bytes_are_counted(writer):
    memory = ray.get(writer.memory.remote())
    assert memory["kv_cache"] > 0
    assert memory["weights"] + memory.get("packed_weights", 0) > 100_000


def test_a_folder_without_weights_is_refused(tmp_path):
    from actors.text import check_text_model
    from trainers.data.errors import UserError

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"negatives.injector=.*: no tokenizer.json"):
        check_text_model(str(tmp_path), "negatives.injector")
