"""Objectives: pure functions from log-probabilities to one loss per example, and what their signatures ask for."""
