import subprocess
import sys
from types import ModuleType

import pytest

from actors import vllm_imports
from actors.vllm_worker import Extension
from trainers.data.errors import UserError


def test_what_is_missing_is_stood_in_for_and_refuses_to_be_used():
    module = ModuleType("some.module")
    module.there = 1
    assert vllm_imports.stand_in(module, ("there",)) is False
    assert vllm_imports.stand_in(module, ("there", "Gone")) is True
    assert module.there == 1
    with pytest.raises(UserError, match=r"needs some\.module\.Gone, .*docs/versions\.md"):
        module.Gone("config", device="cpu")
    # the second engine of a process has workers of its own
    assert vllm_imports.stand_in(module, ("there", "Gone")) is True


def test_the_newest_vllm_needs_nothing(monkeypatch):
    monkeypatch.setattr(vllm_imports, "stand_in", lambda *_: pytest.fail("it was"))
    for version in ("", "0.32.0", "1.0"):
        monkeypatch.setattr(vllm_imports, "vllm_version", lambda version=version: version)
        assert vllm_imports.complete_imports() is False


def test_vllms_workers_import_it_by_name():
    assert f"{Extension.__module__}.{Extension.__name__}" == vllm_imports.WORKER


@pytest.mark.vllm
def test_the_installed_vllm_imports_the_llava_families():
    code = (
        "from actors.vllm_imports import complete_imports as complete; complete()\n"
        "from vllm.model_executor.models import llava, llava_next, llava_onevision"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
