"""How Hydra hands over a grid: our sweeper expands it, our launcher composes each cell and passes it on. Nothing runs here.

Both report every problem of the whole grid at once, and both leave the disk alone (Hydra's own sweeper writes a file).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from launch.mistakes import first_override_at_fault, sentences
from medvlm_dpo.errors import InputError


class CollectingLauncher(Launcher):
    """Composes cells and gives each to the task function, which keeps them; the command runs them when Hydra is done.

    Args:
        n_parallel: cells at a time.
        threads: CPU threads of one cell, or `auto`.
    """

    def __init__(self, n_parallel: int, threads: int | str) -> None:
        self.n_parallel, self.threads = n_parallel, threads
        self._context: HydraContext | None = None
        self._master: DictConfig | None = None
        self._keep: TaskFunction | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's call before `launch`."""
        self._context, self._master, self._keep = hydra_context, config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:  # noqa: ARG002
        """Composes every job. Returning no results ends Hydra quietly.

        Raises:
            InputError: with the problems of all jobs.
        """
        if self._keep is None:
            raise RuntimeError("Hydra calls setup before launch")
        problems: dict[str, None] = {}
        for overrides in job_overrides:
            found, composed = self._compose(list(overrides))
            problems.update(dict.fromkeys(found))
            if composed is not None:
                self._keep(composed)
        if problems:
            raise InputError(problems)
        return []

    def _compose(self, overrides: list[str]) -> tuple[list[str], DictConfig | None]:
        """Hydra stops at the first bad override; without it we look for the next one."""
        if self._context is None or self._master is None:
            raise RuntimeError("Hydra calls setup before launch")
        problems: list[str] = []
        choices: dict[str, Any] = dict(self._master.hydra.runtime.choices)
        while True:
            try:
                composed = self._context.config_loader.load_sweep_config(self._master, overrides)
            except (HydraException, OmegaConfBaseException) as error:
                problems += sentences(error, overrides, choices)
                fault = first_override_at_fault(error, overrides)
                if fault is None:
                    return problems, None
                overrides = [override for override in overrides if override != fault]
            else:
                return problems, None if problems else composed


class CollectingSweeper(Sweeper):
    """Expands the comma-separated values of the command line, and those a file sets under `hydra.sweeper.params`.

    Args:
        params: axes by key; the command line replaces them.
    """

    def __init__(self, params: dict[str, str] | None) -> None:
        self._params = params or {}
        self._context: HydraContext | None = None
        self._launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's call before `sweep`."""
        from hydra.core.plugins import Plugins  # a cycle otherwise: the plugin registry imports this module

        self._context = hydra_context
        self._launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Hands all combinations to the launcher at once."""
        if self._context is None or self._launcher is None:
            raise RuntimeError("Hydra calls setup before sweep")
        keys = Counter(argument.split("=", 1)[0] for argument in arguments)
        twice = [key for key, count in keys.items() if count > 1]
        if twice:
            raise InputError(f"{key}: given more than once; give it once, with commas (and -m) for several values" for key in twice)
        parser = OverridesParser.create(config_loader=self._context.config_loader)
        axes = parser.parse_overrides([f"{key}={value}" for key, value in self._params.items()] + arguments)
        jobs = [job for batch in BasicSweeper.split_arguments(axes, None) for job in batch]
        return self._launcher.launch(jobs, 0)
