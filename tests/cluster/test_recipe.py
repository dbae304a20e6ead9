"""A new process is asked what the one before it was, and no more."""

from __future__ import annotations

import pytest

from cluster.recipe import Call, Recipe


def after(*names: str, weights: bool = False) -> Recipe:
    """A recipe after these calls; the weights were asked for at the last."""
    recipe = Recipe()
    for name in names:
        recipe.note(Call(name, (f"given to {name}",)))
    if weights:
        recipe.weights = lambda: Call("update_weights", ("today's",))
    return recipe


def names(recipe: Recipe, before: str) -> list[str]:
    return [call.name for call in recipe.calls(before)]


@pytest.mark.parametrize(
    ("recipe", "before", "expected"),
    [
        (after(), "generate", []),
        (after("load"), "generate", ["load"]),
        (after("load"), "load", []),
        (after("load", "generate", "memory"), "generate", ["load"]),
        (after("load", weights=True), "generate", ["load", "update_weights"]),
        # The call that is done again brings the weights itself.
        (after("load", weights=True), "update_weights", ["load"]),
        # An engine starts asleep: its weights need it awake.
        (after("load", "wake_up"), "generate", ["load", "wake_up"]),
        (
            after("load", "wake_up", "sleep", weights=True),
            "wake_up",
            ["load", "wake_up", "update_weights", "sleep"],
        ),
        (after("load", "wake_up", weights=True), "wake_up", ["load", "wake_up", "update_weights"]),
        (after("load", "park"), "wake", ["load", "park"]),
        (after("load", "park", "wake"), "score_rows", ["load", "wake"]),
        (after("load", "unload"), "load", []),
        (after("load", "park", "load"), "score_rows", ["load"]),
    ],
)
def test_calls(recipe, before, expected):
    assert names(recipe, before) == expected


def test_a_call_comes_with_what_it_was_given():
    (load,) = after("load").calls("generate")
    assert load == Call("load", ("given to load",))


def test_weights_are_asked_for_when_they_are_needed():
    asked = []
    recipe = after("load")
    recipe.weights = lambda: Call("update_weights", (asked.append(1),))
    assert not asked
    list(recipe.calls("generate"))
    assert asked == [1]
