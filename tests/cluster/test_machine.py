from cluster import machine
from cluster.machine import judge_gpu


def test_gpu_and_build_must_fit():
    assert judge_gpu(present=False, build="None", usable=False).status == "ok"
    assert judge_gpu(present=False, build="13.0", usable=False).status == "ok"
    assert judge_gpu(present=True, build="13.0", usable=True).status == "ok"
    assert judge_gpu(present=True, build="None", usable=False).status == "fail"
    assert judge_gpu(present=True, build="13.0", usable=False).status == "fail"


def test_little_memory_fails(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 3.0)
    assert machine.check_memory().status == "fail"
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    assert machine.check_memory().status == "warn"


def test_cache_folder_is_made_or_refused(tmp_path):
    assert machine.check_cache(tmp_path / "a" / "b").status == "ok"
    (tmp_path / "file").touch()
    assert machine.check_cache(tmp_path / "file").status == "fail"


def test_space_is_asked_of_the_nearest_folder_that_exists(tmp_path):
    names = {check.name for check in machine.check_space(tmp_path / "not" / "yet")}
    assert "free disk" in names


def test_loopback_works_here():
    assert machine.check_loopback().status == "ok"


def test_a_missing_compiler_fails(monkeypatch):
    assert machine.check_compiler().status == "ok"
    monkeypatch.setenv("CXX", "no-such-compiler")
    check = machine.check_compiler()
    assert check.status == "fail" and "g++" in check.remedy
