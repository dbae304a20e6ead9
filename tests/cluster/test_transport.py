"""A session's transport: chosen once, announced once; and the order of a direct sync."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError

from actors import sending
from actors.engine import EngineSpec
from actors.inbox import Meeting
from actors.sending import Outbox, Sends
from actors.transports import Choice, Reach
from actors.weight_sync import CorruptBucketError
from cluster import direct_sync
from cluster.compare import engine_spec
from cluster.config import RunConfig
from cluster.config_text import validate
from cluster.direct_sync import send_directly
from cluster.placement import Node, Plan, Seat
from cluster.recipe import Call, Recipe
from cluster.session import Session
from cluster.sync import _send
from cluster.transport import choose_transport, gpus_of, senders
from cluster.wait import DeadlineError, ProcessLostError
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

    def destroy(self) -> None:
        self.log.append(("destroy",))


class Here:
    """A process that is this one: asked and answered at once."""

    def __init__(self, actor: Any, role: str = "rollout"):
        self.actor, self.role, self.rank, self.lost = actor, role, 0, False

    def place(self) -> None:
        return None

    def kill(self) -> None:
        self.actor.log.append((f"kill {self.actor.number}",))
        self.lost = True

    def send(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.actor, name)(*args, **kwargs)


@pytest.fixture
def arranged(monkeypatch):
    """`arranged(kind, plan)`: a session of such processes, its arm and the log."""
    log: list[Any] = []
    tensors = [("a", torch.tensor([1.0, 2.0])), ("b", torch.tensor([3.0])), ("c", torch.ones(1))]

    def held(vlm: Any) -> Any:
        return iter(tensors)

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
            lost=False,
            ranks=ranks,
        )
        recipe = Recipe(load=lambda: Call("load", (replace(SPEC, transport=kind),)))
        served = SimpleNamespace(processes=engines, recipe=recipe)
        session = SimpleNamespace(
            transport=Choice(kind, ""),
            not_direct="",
            direct_worked=False,
            plan=placed,
            console=Said(),
            wait=lambda asked, limit: asked,
            trainer=lambda role: policy,
            served=lambda role: served,
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
        ("destroy",),
    ]
    assert session.direct_worked


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


# What goes wrong in one ------------------------------------------------------------------------

CORRUPT = CorruptBucketError("weight sync: 1 tensors were corrupted")
BAD_HANDLE = RayTaskError(
    "receive", "ray::RolloutActor.receive() (pid=1)\nTraceback", ValueError("no such uuid\nmore")
)
LATE = DeadlineError("no answer to receive within deadlines.sync=900 s")
DEAD = ProcessLostError(Here(None), "receive")
PLACES = {"ipc": plan([(0,)], [(0,)]), "nccl": plan([(0,)], [(1,)])}


def fails(monkeypatch: Any, call: str, error: Exception) -> None:
    """An engine's call ends with an error."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(Engine, call, fail)


@pytest.mark.parametrize("kind", ["ipc", "nccl"])
@pytest.mark.parametrize("call", ["open_update", "receive", "close_update"])
@pytest.mark.parametrize("error", [CORRUPT, BAD_HANDLE, LATE, DEAD], ids=lambda e: type(e).__name__)
def test_auto_gives_up_what_fails_at_its_first_sync(arranged, monkeypatch, kind, call, error):
    session, arm, log = arranged(kind, PLACES[kind])
    session.transport = Choice(kind, "", falls_back=True)
    fails(monkeypatch, call, error)
    assert not send_directly(session, arm, 7)
    assert session.transport.transport == "object_store"
    assert session.not_direct.startswith(f"{kind} failed: ")
    assert ("kill 0",) in log and not session.direct_worked
    # what takes the engine's place is made for the way that is left
    assert session.served("rollout").recipe.load().args[0].transport == "object_store"
    (line,) = session.console.lines
    assert "train.transport=auto goes on through host memory" in line and "\n" not in line


def test_the_errors_first_line_says_what_was_given_up(arranged, monkeypatch):
    session, arm, _ = arranged("ipc", PLACES["ipc"])
    session.transport = Choice("ipc", "", falls_back=True)
    fails(monkeypatch, "receive", BAD_HANDLE)
    send_directly(session, arm, 7)
    why = "rollout engine failed in receive: ValueError: no such uuid"
    assert session.not_direct == f"ipc failed: {why}"
    (line,) = session.console.lines
    assert line == (
        f"weights on the GPU that policy and engine share (vLLM's CUDA IPC engine): {why}; "
        "train.transport=auto goes on through host memory, with new engines, for the rest of the "
        "run"
    )


def test_a_senders_failure_is_one_too(arranged, monkeypatch):
    session, arm, _ = arranged("ipc", PLACES["ipc"])
    session.transport = Choice("ipc", "", falls_back=True)

    def export(self: Outbox) -> None:
        raise RayTaskError("outbox", "ray::TrainActor.outbox()", RuntimeError("no handle"))

    monkeypatch.setattr(sending.IpcOutbox, "_handles", export)
    assert not send_directly(session, arm, 7)
    assert session.not_direct == "ipc failed: trainer failed in outbox: RuntimeError: no handle"


def test_a_run_that_gave_up_does_not_choose_again(session):
    session.not_direct = "ipc failed: no handle"
    four = plan([(0,)], [(0,)])
    found = choose_transport(SPEC, four, lambda: pytest.fail("it looked"), not_direct="ipc failed")
    assert found == Choice("object_store", "ipc failed")
    named = replace(SPEC, transport="ipc")  # who named it gets it
    assert choose_transport(named, four, lambda: GPU, not_direct="ipc failed").transport == "ipc"
    session.load_rollout(SPEC)
    assert session.console.lines == [
        "weights: through host memory (object store); ipc failed: no handle"
    ]


@pytest.mark.parametrize("error", [BAD_HANDLE, LATE], ids=lambda e: type(e).__name__)
def test_a_transport_that_was_named_fails_with_its_error(arranged, monkeypatch, error):
    session, arm, _ = arranged("ipc", PLACES["ipc"])
    fails(monkeypatch, "receive", error)
    with pytest.raises(type(error)) as caught:
        send_directly(session, arm, 7)
    assert caught.value is error and session.transport.transport == "ipc"


@pytest.mark.parametrize(("kind", "falls_back"), [("ipc", False), ("ipc", True), ("nccl", True)])
def test_after_a_sync_that_worked_a_dead_engine_costs_one_sync(
    arranged, monkeypatch, kind, falls_back
):
    session, arm, log = arranged(kind, PLACES[kind])
    session.transport = Choice(kind, "", falls_back=falls_back)
    assert send_directly(session, arm, 7)
    fails(monkeypatch, "receive", DEAD)
    assert not send_directly(session, arm, 8)
    assert session.transport.transport == kind and ("kill 0",) in log
    assert "new engines get the weights through the object store" in session.console.lines[0]


def test_what_arrives_corrupted_is_to_be_sent_another_way(arranged, monkeypatch):
    session, arm, log = arranged("ipc", PLACES["ipc"])
    fails(monkeypatch, "close_update", CORRUPT)
    assert not send_directly(session, arm, 7)
    assert "sent again through the object store" in session.console.lines[0]
    assert ("kill 0",) not in log  # the engine is whole


@pytest.mark.parametrize("call", ["open_update", "receive", "close_update"])
@pytest.mark.parametrize(("kind", "end"), [("ipc", "collect"), ("nccl", "destroy")])
def test_the_sender_keeps_nothing_of_a_sync_that_failed(arranged, monkeypatch, kind, end, call):
    session, arm, log = arranged(kind, PLACES[kind])
    fails(monkeypatch, call, BAD_HANDLE)
    with pytest.raises(RayTaskError):
        send_directly(session, arm, 7)
    (rank,) = session.trainer("policy").ranks
    assert rank._outbox.current == [] and list(rank._outbox._tensors) == []
    # an NCCL group that was never met has no end
    assert ((end,) in log) == (kind == "ipc" or call != "open_update")


def test_of_two_errors_the_first_is_told(arranged, monkeypatch):
    session, arm, _ = arranged("ipc", PLACES["ipc"])
    fails(monkeypatch, "receive", BAD_HANDLE)
    second = RayTaskError("outbox", "ray::TrainActor.outbox()", RuntimeError("nothing to close"))

    def close(self: Outbox) -> None:
        raise second

    monkeypatch.setattr(sending.IpcOutbox, "close", close)
    with pytest.raises(RayTaskError) as caught:
        send_directly(session, arm, 7)
    assert caught.value is BAD_HANDLE


@pytest.mark.parametrize("worked", [False, True])
def test_a_lost_policy_goes_back_to_its_checkpoint_and_finds_new_engines(
    arranged, monkeypatch, worked
):
    session, arm, log = arranged("nccl", PLACES["nccl"])
    session.transport, session.direct_worked = Choice("nccl", "", falls_back=True), worked
    lost = ProcessLostError(Here(None, "policy"), "outbox")
    fails(monkeypatch, "receive", lost)
    with pytest.raises(ProcessLostError) as caught:
        send_directly(session, arm, 7)
    assert caught.value is lost and ("kill 0",) in log
    assert session.transport.transport == ("nccl" if worked else "object_store")


def test_a_sender_that_was_ended_in_its_broadcast_is_said(arranged, monkeypatch):
    session, arm, log = arranged("nccl", PLACES["nccl"])

    def receive(self: Engine, parcel: Any) -> None:
        session.trainer("policy").lost = True  # as `Wait` does with a rank that is stuck
        raise DEAD

    monkeypatch.setattr(Engine, "receive", receive)
    assert not send_directly(session, arm, 7)
    assert "the policy's sender was in a broadcast" in session.console.lines[1]
    assert ("destroy",) not in log  # a process that is gone is not asked


def test_a_misspelt_call_is_an_error_where_something_is_sent():
    rank = Trainer(0, [])
    assert rank.outbox("next_parcle") is None  # of a rank that sends nothing
    rank._outbox = Outbox(iter(()), torch.device("cpu"), 1, checked=False)
    assert rank.outbox("next_parcel") is None
    with pytest.raises(AttributeError, match="next_parcle"):
        rank.outbox("next_parcle")


def test_a_bucket_that_is_sent_again_is_said_in_one_line():
    traceback = "ray::RolloutActor.update_weights() (pid=1)\nTraceback\nCorruptBucketError"
    arrived = RayTaskError("update_weights", traceback, CORRUPT).as_instanceof_cause()
    loaded: list[str] = []

    def load(buckets: str) -> None:
        loaded.append(buckets)
        if len(loaded) == 1:
            raise arrived

    console = Said()
    _send(SimpleNamespace(console=console), lambda: "buckets", load)
    assert loaded == ["buckets", "buckets"]
    why = "rollout engine failed in update_weights: CorruptBucketError: weight sync: 1 tensors"
    assert console.lines == [f"{why} were corrupted; it is sent again"]


# What settings say -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "transport", "why"),
    [
        ({}, "auto", ""),
        ({"train": {"transport": "nccl"}}, "nccl", ""),
        ({"train": {"transport": "object_store"}}, "object_store", "as train.transport says"),
        (
            {"train": {"lora_rank": 4, "lora_sync": "adapter"}},
            "object_store",
            "train.lora_sync=adapter sends adapters alone",
        ),
        (
            {"overlap": {"off_policy_steps": 1}},
            "object_store",
            "overlap.off_policy_steps=1 keeps the weights for an engine that is replaced",
        ),
        (
            {"train": {"zero_stage": 3}},
            "object_store",
            "train.zero_stage=3 gathers weights in host memory",
        ),
    ],
)
def test_what_settings_rule_out_is_announced_with_its_key(session, settings, transport, why, store):
    method = {"name": "ppo"} if "overlap" in settings else {"name": "dpo"}
    config = validate(RunConfig, {"method": method, **settings})
    spec = engine_spec("m", store, config)
    assert (spec.transport, spec.transport_why) == (transport, why)
    if why:
        session.load_rollout(spec)
        assert session.console.lines == [f"weights: through host memory (object store); {why}"]
        assert [name for _, name, *_ in session.asked] == ["load"]  # nobody was asked for it


@pytest.mark.parametrize("transport", ["ipc", "nccl"])
def test_zero_3_has_no_whole_weights_on_a_device(transport):
    values = {"method": {"name": "dpo"}, "train": {"zero_stage": 3, "transport": transport}}
    with pytest.raises(UserError, match=rf"train\.transport={transport} .*train\.zero_stage=3"):
        validate(RunConfig, values)
