"""A session's transport: chosen once, announced once; and the order of a direct sync."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors import sending
from actors.engine import EngineSpec
from actors.inbox import Meeting
from actors.sending import Outbox, Sends
from actors.transports import Choice, Reach
from cluster import direct_sync
from cluster.direct_sync import send_directly
from cluster.placement import Node, Plan, Seat
from cluster.session import Session
from cluster.transport import choose_transport, gpus_of, senders
from trainers.data.errors import UserError

CPU = Reach(cuda=False, vllm="0.32.0", backends=frozenset({"ipc", "nccl"}))
GPU = Reach(cuda=True, vllm="0.32.0", backends=frozenset({"ipc", "nccl"}))
SPEC = EngineSpec(model_dir="m", image_root="i", transport="auto")


def plan(policy: list[tuple[int, ...]], rollout: list[tuple[int, ...]]) -> Plan:
    seats = [Seat("policy", rank, 0, gpus) for rank, gpus in enumerate(policy)]
    seats += [Seat("rollout", rank, 0, gpus) for rank, gpus in enumerate(rollout)]
    return Plan(nodes=(Node("a", 8),), seats=tuple(seats), groups=(("policy",), ("rollout",)))


def test_gpus_and_who_sends():
    four = plan([(0,), (1,), (2,), (3,)], [(2, 3)])
    assert gpus_of(four, "rollout") == {(0, 2), (0, 3)}
    assert senders(four) == (2, 3)
    assert choose_transport(SPEC, four, lambda: GPU).transport == "ipc"
    assert choose_transport(SPEC, plan([(0,)], [(1,)]), lambda: GPU).transport == "nccl"


def test_an_engine_without_a_setting_is_not_asked():
    spec = EngineSpec(model_dir="m", image_root="i")
    found = choose_transport(spec, plan([()], [()]), lambda: pytest.fail("it was"))
    assert found.transport == "object_store"


class Said:
    folder = None

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    warn = line


@pytest.fixture
def session(monkeypatch):
    """A session whose processes only say what they were asked."""
    made = Session(num_threads=1, console=Said())
    made._reservation = SimpleNamespace(plan=plan([()], [()]))
    made.asked = []

    def ask(role: str, name: str, *args: Any, limit: str) -> Any:
        made.asked.append((role, name, *args))
        return CPU

    monkeypatch.setattr(made, "ask", ask)
    return made


def test_the_choice_is_announced_once_and_reaches_the_engine(session):
    session.load_rollout(SPEC)
    session.load_rollout(SPEC)
    assert session.console.lines == ["weights: through host memory (object store); there is no GPU"]
    (_, name, spec) = session.asked[-1]
    assert name == "load" and spec.transport == "object_store"
    assert session.transport == Choice("object_store", "there is no GPU")


def test_an_engine_of_ours_is_loaded_in_silence(session):
    session.load_rollout(EngineSpec(model_dir="m", image_root="i"))
    assert not session.console.lines and [name for _, name, *_ in session.asked] == ["load"]


def test_where_nothing_is_trained_there_is_nothing_to_choose(session):
    session._reservation = SimpleNamespace(plan=plan([], [(0,)]))  # `quartet eval`
    session.load_rollout(SPEC)
    assert not session.console.lines and [name for _, name, *_ in session.asked] == ["load"]
    assert session.transport.transport == "object_store"


def test_a_transport_that_cannot_work_stops_the_run_before_it_loads(session):
    spec = EngineSpec(model_dir="m", image_root="i", transport="nccl")
    with pytest.raises(UserError, match=r"train\.transport=nccl: there is no GPU"):
        session.load_rollout(spec)
    assert [name for _, name, *_ in session.asked] == ["reach"]


# A direct sync ---------------------------------------------------------------------------------


class Trainer(Sends):
    """A rank with three tensors and a real outbox."""

    def __init__(self, rank: int, log: list[Any]):
        self.rank, self.log, self.device = rank, log, torch.device("cpu")
        self._engine = SimpleNamespace(module=SimpleNamespace(vlm=None))
        self.spec = SimpleNamespace(zero_stage=0)


class Engine:
    """Notes what it is told; the group hands it what is broadcast."""

    def __init__(self, number: int, log: list[Any]):
        self.number, self.log = number, log

    def open_update(self, meeting: Meeting | None, *, checked: bool) -> None:
        where = None if meeting is None else (meeting.offset, meeting.world_size)
        self.log.append((f"open {self.number}", where, checked))

    def receive(self, parcel: Any) -> None:
        self.log.append((f"receive {self.number}", parcel.names, parcel.handles))

    def close_update(self, version: int) -> int:
        self.log.append((f"close {self.number}", version))
        return version


class Group:
    def __init__(self, log: list[Any]):
        self.log = log

    def broadcast(self, tensor: Any, src: int, stream: Any) -> None:
        self.log.append(("broadcast", tensor.tolist()))


class Here:
    """A process that is this one: asked and answered at once."""

    def __init__(self, actor: Any):
        self.actor, self.lost = actor, False

    def send(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.actor, name)(*args, **kwargs)


@pytest.fixture
def arranged(monkeypatch):
    """`arranged(kind, plan)`: a session of such processes, its arm and the log."""
    log: list[Any] = []
    tensors = [("a", torch.tensor([1.0, 2.0])), ("b", torch.tensor([3.0])), ("c", torch.ones(1))]

    def held(vlm: Any, *, gather: bool, keep: bool) -> Any:
        return tensors if keep else []

    def export(self: Outbox) -> dict[str, Any]:
        return {f"gpu-{len(self.current)}": ("args",)}

    def meet(host: str, port: int, world_size: int) -> Group:
        log.append(("meet", world_size))
        return Group(log)

    monkeypatch.setattr(sending, "checkpoint_tensors", held)
    monkeypatch.setattr(sending.IpcOutbox, "_handles", export)
    monkeypatch.setattr(sending, "nccl_sender", meet)
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: log.append(("collect",)))
    for name in ("awake", "at_work"):
        monkeypatch.setattr(direct_sync, name, lambda *args: nullcontext())

    def make(kind: str, placed: Plan) -> Any:
        ranks = [Trainer(s.rank, log) for s in placed.seats if s.role == "policy"]
        engines = [Here(Engine(s.rank, log)) for s in placed.seats if s.role == "rollout"]
        policy = SimpleNamespace(
            ask=lambda name, *a, limit, **k: [getattr(rank, name)(*a, **k) for rank in ranks],
            send=lambda name, *a, **k: [getattr(rank, name)(*a, **k) for rank in ranks],
        )
        session = SimpleNamespace(
            transport=Choice(kind, ""),
            plan=placed,
            console=Said(),
            wait=lambda asked, limit: asked,
            trainer=lambda role: policy,
            served=lambda role: SimpleNamespace(processes=engines),
        )
        train = SimpleNamespace(bucket_mib=1, checksum_every=4)
        config = SimpleNamespace(train=train, rollout=SimpleNamespace(tensor_parallel=2))
        return session, SimpleNamespace(config=config, round=1), log

    monkeypatch.setattr(Outbox, "_take", lambda self: iter(_two(self)))
    return make


def _two(outbox: Outbox) -> list[tuple[str, torch.Tensor]]:
    """Two tensors at a time, whatever their bytes."""
    return [item for item in (next(outbox._tensors, None) for _ in range(2)) if item]


def test_nccl_engines_meet_receive_while_it_is_sent_and_close(arranged):
    session, arm, log = arranged("nccl", plan([(0,), (1,)], [(2, 3), (4, 5)]))
    assert send_directly(session, arm, 7)
    assert log == [
        ("open 0", (1, 5), False),  # ranks 1 and 2 of five: each engine has two workers
        ("open 1", (3, 5), False),
        ("meet", 5),
        ("receive 0", ("a", "b"), None),
        ("receive 1", ("a", "b"), None),
        ("broadcast", [1.0, 2.0]),
        ("broadcast", [3.0]),
        ("receive 0", ("c",), None),
        ("receive 1", ("c",), None),
        ("broadcast", [1.0]),
        ("close 0", 7),
        ("close 1", 7),
    ]


def test_ipc_ranks_on_the_engines_gpus_export_their_buffers(arranged):
    session, arm, log = arranged("ipc", plan([(0,), (1,)], [(1,)]))
    assert send_directly(session, arm, 7)
    assert log == [
        ("open 0", None, False),
        ("receive 0", ("a", "b"), {"gpu-2": ("args",)}),
        ("receive 0", ("c",), {"gpu-1": ("args",)}),
        ("close 0", 7),
        ("collect",),
    ]


def test_what_arrives_corrupted_is_to_be_sent_another_way(arranged, monkeypatch):
    from actors.weight_sync import CorruptBucketError

    session, arm, _ = arranged("ipc", plan([(0,)], [(0,)]))

    def close(self: Engine, version: int) -> int:
        raise CorruptBucketError("weight sync: 1 tensors were corrupted")

    monkeypatch.setattr(Engine, "close_update", close)
    assert not send_directly(session, arm, 7)
    assert "sent again through the object store" in session.console.lines[0]
