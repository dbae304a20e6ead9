"""Measures what a round, a step and a card do; each module that does is a command (`python -m benchmarks.tax`)."""
