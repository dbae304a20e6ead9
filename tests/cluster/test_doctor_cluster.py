"""The checks of Ray, its token and ports, the allocator, and two processes that really talk."""

from __future__ import annotations

import socket

import pytest

from cluster.doctor_cluster import (
    check_address,
    check_allocator,
    check_ports,
    check_processes,
    check_token,
    read_probes,
)
from cluster.doctor_driver import judge_driver


def test_token(tmp_path):
    home = {"HOME": str(tmp_path)}
    assert check_token(home).found == "none yet; Ray makes one"
    assert check_token(home | {"RAY_AUTH_MODE": "token"}).status == "fail"
    assert check_token(home | {"RAY_AUTH_MODE": "disabled"}).status == "warn"
    assert check_token(home | {"RAY_AUTH_TOKEN": "secret"}).found == "in RAY_AUTH_TOKEN"
    file = tmp_path / "token"
    named = home | {"RAY_AUTH_TOKEN_PATH": str(file)}
    assert check_token(named).status == "fail"
    file.write_text("secret")
    file.chmod(0o600)
    assert check_token(named).status == "ok"
    file.chmod(0o644)
    assert check_token(named).remedy == f"others can read it: chmod 600 {file}"


def test_address_and_ports():
    assert check_address({}).status == "ok"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            assert check_address({"RAY_ADDRESS": address}).status == "ok"
        taken = check_ports({port: "a head"})
        assert taken.status == "warn" and taken.found == f"{port} in use"
    assert check_ports({port: "a head"}).found == "free"
    for address in (f"127.0.0.1:{port}", "nonsense"):
        gone = check_address({"RAY_ADDRESS": address})
        assert gone.status == "fail" and "unset it" in gone.remedy


def test_allocator():
    assert check_allocator({}).status == "ok"
    assert check_allocator({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}).status == "ok"
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        check = check_allocator({name: "garbage_collection_threshold:0.8,expandable_segments:True"})
        assert check.status == "warn" and f"unset {name}" in check.remedy


@pytest.mark.parametrize(
    ("out", "code", "status"),
    [
        ("NVIDIA H100, 81559 MiB, 580.82.07\nNVIDIA H100, 81559 MiB, 580.82.07\n", 0, "ok"),
        ("NVIDIA A100, 40960 MiB, 535.104.05\n", 0, "warn"),
        ("NVIDIA-SMI has failed because it couldn't communicate", 9, "fail"),
    ],
)
def test_driver(out, code, status):
    check = judge_driver(out, code)
    assert check.status == status
    if status == "ok":
        assert check.found == "580.82.07; 2 x NVIDIA H100, 81559 MiB"


def test_a_probe_without_its_line_failed():
    first = '{"name": "weight sync", "good": true, "found": "one tensor in 0.1 s"}'
    sync, ranks = read_probes(f"noise\n{first}\n", "no answer in 3 s")
    assert (sync.status, ranks.status) == ("ok", "fail")
    assert ranks.found == "no answer in 3 s" and "GLOO_SOCKET_IFNAME" in ranks.remedy


@pytest.mark.slow
@pytest.mark.ray
def test_two_processes_really_talk():
    checks = check_processes()
    assert [check.status for check in checks] == ["ok", "ok"], checks
    assert "on 127.0.0.1" in checks[1].found or "nccl" in checks[1].found


def test_probes_that_cannot_start_are_two_lines(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert [check.status for check in check_processes(20)] == ["fail", "fail"]
