import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import torchvision_hook
from cluster.torchvision_hook import COPY_NAME, PTH_NAME, TorchvisionFinder, activate, install


def python(code: str, *options: str) -> str:
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def fake_torchvision(tmp_path, monkeypatch):
    """A package named torchvision, first on the path, and this process without the real one."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("executed = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not is_finder(f)])
    yield package
    sys.modules.pop("torchvision", None)


def is_finder(finder: object) -> bool:
    return type(finder).__name__ == TorchvisionFinder.__name__


def test_prepares_once_right_before_torchvision_runs(fake_torchvision, monkeypatch):
    calls = []

    def prepare(folders):
        calls.append((tuple(folders), hasattr(sys.modules["torchvision"], "executed")))

    sys.meta_path.insert(0, TorchvisionFinder(prepare))
    module = importlib.import_module("torchvision")
    importlib.import_module("torchvision")
    assert module.executed
    assert calls == [((str(fake_torchvision),), False)]


def test_asking_whether_torchvision_is_there_prepares_nothing(fake_torchvision):
    calls = []
    sys.meta_path.insert(0, TorchvisionFinder(calls.append))
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin == str(fake_torchvision / "__init__.py")
    assert calls == []


def test_other_modules_are_not_its_business():
    finder = TorchvisionFinder()
    assert finder.find_spec("torch") is None
    assert finder.find_spec("torchvision.ops") is None


def test_no_torchvision_stays_no_torchvision(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [TorchvisionFinder()])
    assert sys.meta_path[0].find_spec("torchvision") is None


def test_activate_twice_puts_one_finder(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not is_finder(f)])
    activate()
    activate()
    assert [is_finder(f) for f in sys.meta_path].count(True) == 1
    assert is_finder(sys.meta_path[0])


def test_does_nothing_beside_a_cuda_build_of_torch(monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert not torchvision_hook.define_missing_operators(())


def test_does_nothing_when_the_c_library_loads(monkeypatch, tmp_path):
    import ctypes

    import torch

    (tmp_path / "_C.so").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not torchvision_hook.define_missing_operators([str(tmp_path)])


def test_a_library_that_is_not_one_does_not_load(tmp_path):
    assert not torchvision_hook._c_library_loads([str(tmp_path)])
    (tmp_path / "_C.so").write_text("not a library")
    assert not torchvision_hook._c_library_loads([str(tmp_path)])


def test_installed_copy_starts_with_the_interpreter(tmp_path):
    """`site.addsitedir` reads .pth files as an interpreter's start does for site-packages."""
    written = install(tmp_path)
    assert [p.name for p in written] == [f"{COPY_NAME}.py", PTH_NAME]
    code = (
        "import sys; import site; sys.meta_path[:] = [f for f in sys.meta_path "
        "if type(f).__name__ != 'TorchvisionFinder']; "
        f"site.addsitedir({str(tmp_path)!r}); print(type(sys.meta_path[0]).__name__)"
    )
    assert python(code, "-S") == "TorchvisionFinder"


def test_needs_next_to_nothing_at_start(tmp_path):
    """What the hook adds to an interpreter's start: its own module and no other."""
    install(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); before = set(sys.modules); "
        f"import {COPY_NAME}; {COPY_NAME}.activate(); print(sorted(set(sys.modules) - before))"
    )
    assert python(code, "-S") == f"['{COPY_NAME}']"


def test_torchvision_imports_in_a_fresh_process_of_this_environment():
    pytest.importorskip("torchvision")
    assert python("import torchvision; print(torchvision.__name__)") == "torchvision"


def test_refuses_to_touch_a_system_python(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(torchvision_hook, "install", lambda folder: pytest.fail("installed"))
    assert torchvision_hook.main() == 2
    assert "virtual environment" in capsys.readouterr().out
    assert list(Path(tmp_path).iterdir()) == []
