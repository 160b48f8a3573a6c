"""Hydra accepts launchers and sweepers only from a package of this name; what they do is in `launch.launcher`."""

from launch.launcher import CollectingLauncher, CollectingSweeper


class LocalLauncher(CollectingLauncher):
    """Cells run as processes of this machine."""


class GridSweeper(CollectingSweeper):
    """Every combination of the comma-separated values, once."""
