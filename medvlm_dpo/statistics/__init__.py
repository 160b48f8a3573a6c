"""Means, spreads and intervals for sweeps of losses and seeds. Numpy and scipy only."""
