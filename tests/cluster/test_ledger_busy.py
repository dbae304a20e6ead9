"""The ledger beside a process that is busy with the next round: no phase waits for its readings."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from actors.ledger import Reading
from cluster.deadlines import DeadlinesConfig
from cluster.ledger import Ledger
from cluster.process import Process
from cluster.served import ServedGroup
from cluster.session import Session
from trainers.comparison import Memory
from trainers.ledger import read_rows
from trainers.roles import Copy

pytestmark = pytest.mark.ray


class Light:
    """An engine or a judge without a model: holds as many bytes as it was asked for readings."""

    def __init__(self) -> None:
        self.asked = 0

    def end_phase(self, phase: str) -> Reading:
        self.asked += 1
        copies = {"policy": {"weights": self.asked}}
        return Reading(copies=copies, runtime=0, source="storages")

    def generate(self, gate: str) -> None:
        """Busy until there is a file `gate`."""
        while not Path(gate).exists():
            time.sleep(0.01)


@pytest.fixture
def session(shared_session, tmp_path):
    """A session of two such processes that have half a second for a small question."""
    made = Session(console=SimpleNamespace(folder=tmp_path), deadlines=DeadlinesConfig(answer=0.5))
    for role in ("rollout", "judge"):
        start = ray.remote(Light).options(num_cpus=0).remote
        group = ServedGroup(
            [Process(role, 0, start, made.id)],
            made.wait,
            may_replace=lambda process: True,
            replaced=lambda process: None,
            warn=lambda text: None,
        )
        ray.get(group.processes[0].handle.end_phase.remote("load"))  # it has come up
        made._single[role] = group
    yield made
    for process in made.processes():
        ray.kill(process.handle)


def counted(path: Path) -> list[tuple[int, str, str, int]]:
    rows = read_rows(path) if path.is_file() else []
    return [(row.round, row.phase, row.process, row.bytes) for row in rows]


def both(round: int, phase: str, number: int) -> list[tuple[int, str, str, int]]:
    return [(round, phase, f"{role}/0", number) for role in ("rollout", "judge")]


def test_no_phase_waits_for_a_process_that_is_busy_past_the_limit(session, tmp_path):
    ledger = Ledger(session, (Copy("policy", trained=True),), tmp_path)
    ledger.end_phase(1, "generate")
    gate = tmp_path / "gate"
    busy = session.served("rollout").begin("generate", str(gate))
    judge = session.processes()[1]
    for phase in ("judge", "logprobs", "train"):
        ledger.end_phase(1, phase)
    ray.get(judge.handle.__ray_call__.remote(lambda actor: None))  # it has answered all readings
    time.sleep(2 * session.wait.deadlines.answer)
    ledger.fetch(wait=False)
    assert counted(ledger.path) == both(1, "generate", 3)
    assert ledger.summary(Memory(), wait=False).device_bytes_by_phase == {"generate": 6}
    assert not any(process.lost for process in session.processes())

    gate.touch()
    session.served("rollout").finish(busy, limit="generate")
    ledger.end_phase(1, "sync")
    ledger.fetch()  # the round's end
    phases = ("generate", "judge", "logprobs", "train", "sync")
    expected = [row for number, phase in enumerate(phases, 3) for row in both(1, phase, number)]
    assert counted(ledger.path) == expected
    ledger.fetch()
    assert counted(ledger.path) == expected and len(ledger.rows) == len(expected)
