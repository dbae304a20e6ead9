"""Diffusion noise: the schedule by hand, limits, and equal keys giving equal noise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.batch import Row, encode_row
from trainers.data.noise import NUM_STEPS, ImageNoise, add_noise, signal_shares


def test_the_first_beta_by_hand():
    # sigmoid(-6) = 0.00247262, times (0.005 - 1e-5) = 1.233839e-5, plus 1e-5
    beta = 1 / (1 + math.exp(6)) * (0.5e-2 - 1e-5) + 1e-5
    assert beta == pytest.approx(2.234e-5, abs=1e-8)
    assert float(signal_shares()[0]) == pytest.approx(1 - beta, abs=1e-12)


def test_the_schedule_falls_strictly_and_is_mild():
    shares = signal_shares()
    assert len(shares) == NUM_STEPS
    assert bool((shares[1:] < shares[:-1]).all()) and float(shares[-1]) > 0
    for step, share in {
        300: 0.962,
        500: 0.745,
        700: 0.351,
        800: 0.218,
        900: 0.133,
        999: 0.081,
    }.items():
        assert float(shares[step]) == pytest.approx(share, abs=6e-4), step


@given(step=st.integers(0, NUM_STEPS - 1), key=st.text(max_size=20))
def test_equal_keys_give_equal_noise(step, key):
    pixels = torch.linspace(-2, 2, 48).reshape(1, 3, 4, 4)
    noised = add_noise(pixels, ImageNoise(step, key))
    assert torch.equal(noised, add_noise(pixels, ImageNoise(step, key)))
    assert noised.shape == pixels.shape and noised.dtype == pixels.dtype
    assert not torch.equal(noised, add_noise(pixels, ImageNoise(step, key + "'")))


def test_signal_and_noise_add_up_to_the_formula():
    noise = ImageNoise(900, "scene-1")
    zeros, ones = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    share = float(signal_shares()[900])
    eps = add_noise(zeros, noise) / math.sqrt(1 - share)
    # The same draw, so the difference is the signal alone.
    signal = add_noise(ones, noise) - add_noise(zeros, noise)
    torch.testing.assert_close(signal, torch.full_like(signal, math.sqrt(share)))
    many = add_noise(torch.zeros(100_000), noise) / math.sqrt(1 - share)
    assert abs(float(many.mean())) < 0.02 and float(many.std()) == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(eps[0], eps[1])  # two images of a row get parts of one draw


def test_a_step_outside_the_schedule_is_refused():
    with pytest.raises(ValueError, match="noise step 1000: give one from 0 to 999"):
        ImageNoise(1000, "x")


def test_a_row_without_noise_has_exactly_the_processors_pixels(processing, samples):
    sample = samples[0]
    row = Row.of_response(sample, (10, 11), "row")
    clean = encode_row(row, processing)
    assert torch.equal(
        clean.model_inputs["pixel_values"], processing.image_inputs(sample.images)["pixel_values"]
    )
    row.noise = ImageNoise(500, sample.id)
    noised = encode_row(row, processing)
    assert (noised.input_ids == clean.input_ids).all()
    expected = add_noise(clean.model_inputs["pixel_values"], row.noise)
    assert torch.equal(noised.model_inputs["pixel_values"], expected)
    # and the cache of the clean image was not written to
    again = encode_row(Row.of_response(sample, (10, 11), "row"), processing)
    assert torch.equal(again.model_inputs["pixel_values"], clean.model_inputs["pixel_values"])
