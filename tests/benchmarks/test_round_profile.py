"""`benchmarks.round_profile` and its sampler: where a process is, and in which phase."""

from __future__ import annotations

import sys
import time
from types import FrameType

import numpy as np
import pytest
from PIL import Image

from benchmarks.round_profile import per_round, places
from benchmarks.sampler import ROOT, Sampler, phase_of, placed
from trainers.data.image_codec import encode_png

SPANS = [("generate", 0.0, 2.0), ("train", 2.0, 6.0), ("train", 8.0, 9.0)]


def test_the_innermost_of_nested_spans():
    spans = [("round", 0.0, 10.0), ("train", 2.0, 6.0)]
    moments = (0.0, 2.0, 5.9, 6.0, 10.0)
    assert [phase_of(moment, spans) for moment in moments] == [
        "round",
        "train",
        "train",
        "round",
        "between phases",
    ]


def test_seconds_a_round_by_phase():
    assert per_round(SPANS, 2) == {"generate": 1.0, "train": 2.5}


def test_places_are_summed_over_samples_most_first():
    seen = {
        "driver": [(1.0, 0.5, "f", "ours"), (7.0, 0.25, "f", "ours")],
        "policy/0": [(3.0, 1.0, "g", "torch"), (8.5, 3.0, "g", "torch"), (1.5, 0.75, "g", "torch")],
    }
    keys = ("phase", "process", "function", "library", "seconds")
    assert [tuple(place[key] for key in keys) for place in places(seen, SPANS, 2)] == [
        ("train", "policy/0", "g", "torch", 2.0),
        ("generate", "policy/0", "g", "torch", 0.375),
        ("generate", "driver", "f", "ours", 0.25),
        ("between phases", "driver", "f", "ours", 0.125),
    ]


def function_of(module: str, file: str, body: str, **known: object):
    """A function as if it stood in `module`."""
    names = {"__name__": module, **known}
    exec(compile(f"def work():\n    return {body}\n", file, "exec"), names)
    return names["work"]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [(ROOT, ("trainers.made", "torch")), (ROOT.parent / "elsewhere", None)],
)
def test_our_innermost_function_and_the_library_that_it_called(folder, expected):
    """torch called numpy, which is none of the libraries; a namesake elsewhere is not ours."""
    inner = function_of("numpy.linalg", "/x/numpy.py", "frame()", frame=lambda: sys._getframe(1))
    library = function_of("torch.nn", "/x/torch.py", "inner()", inner=inner)
    ours = function_of("trainers.made", str(folder / "made.py"), "library()", library=library)
    frame = ours()
    assert isinstance(frame, FrameType)
    assert placed(frame) == (expected and (f"{expected[0]}.work", expected[1]))
    assert placed(sys._getframe()) is None  # of a test nothing is


def test_the_sampler_finds_what_the_main_thread_does():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    image, sampler = Image.fromarray(noise), Sampler(interval=0.001)
    switch = sys.getswitchinterval()
    begun = time.perf_counter()
    sampler.start()
    while time.perf_counter() < begun + 0.3:
        encode_png(image)
    seen = sampler.stop()
    assert sys.getswitchinterval() == switch
    taken = time.perf_counter() - begun
    found = [one for one in seen if one[2] == "trainers.data.image_codec.encode_png"]
    assert len(found) > 3
    assert taken / 2 < sum(seconds for _, seconds, *_ in found) <= taken
    assert all(begun < when < begun + taken for when, *_ in seen)
