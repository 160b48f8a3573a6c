"""One side of the benchmark in a process of its own, which does one optimiser step when it is told to."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

STEP, PROFILED_STEP = "step", "profile"
NUM_OPERATIONS = 12


class Gate:
    """The child's end: stands inside a training loop between two steps and lets it go on when the parent says so.

    What libraries print goes to standard error, so that it cannot disturb the pipe.

    Args:
        figures: called at the end of a step, before its time is taken: waits for a device, gives figures in place of the gate's own.
    """

    def __init__(self, figures: Callable[[], Mapping[str, Any]] = dict) -> None:
        self._figures = figures
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._started: float | None = None
        self._processor_started = 0.0
        self._profiler: Any = None

    def ready(self, **facts: Any) -> None:
        """Says that everything is loaded, and what both sides must agree on."""
        self._say(facts)

    def between_steps(self, loss: float | None = None) -> None:
        """Reports the step that ended here, if one was asked for, and waits for the next one.

        Raises:
            SystemExit: when no more steps are wanted.
        """
        figures = self._figures()
        if self._started is not None:
            step = {"seconds": time.perf_counter() - self._started, "processor_s": time.process_time() - self._processor_started}
            peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            self._say({**step, "peak_mb": peak_mb, "loss": loss, "operations": self._profiled(), **figures})
        wanted = sys.stdin.readline().strip()
        if wanted not in (STEP, PROFILED_STEP):
            raise SystemExit(0)
        if wanted == PROFILED_STEP:
            self._profiler = _profiler().__enter__()
        self._started, self._processor_started = time.perf_counter(), time.process_time()

    def _profiled(self) -> list[tuple[str, float, int]]:
        """Operations of the step by their own seconds, with the number of calls; empty unless a profile was asked for."""
        if self._profiler is None:
            return []
        self._profiler.__exit__(None, None, None)
        averages = self._profiler.key_averages()
        self._profiler = None
        operations = [(event.key, event.self_cpu_time_total / 1e6, event.count) for event in averages]
        return sorted(operations, key=lambda operation: -operation[1])[:NUM_OPERATIONS]

    def _say(self, facts: Mapping[str, Any]) -> None:
        self._answers.write(json.dumps(facts) + "\n")
        self._answers.flush()


def end_orderly() -> None:
    """Makes a termination signal unwind the program, so that children and temporary folders do not stay behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class Side:
    """The parent's end.

    Args:
        name: for messages and tables.
        module: of the child, run as `python -m`.
        arguments: handed over as JSON.
        threads: of torch.
    """

    def __init__(self, name: str, module: str, arguments: Mapping[str, Any], *, threads: int) -> None:
        self.name = name
        self.steps: list[dict[str, Any]] = []
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "WANDB_MODE": "disabled",
        }
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._read, self._write = _opened(self._child.stdout), _opened(self._child.stdin)
        self._facts: dict[str, Any] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the child said when it was ready; waits for that."""
        if self._facts is None:
            self._facts = self._answer()
        return self._facts

    def step(self) -> dict[str, Any]:
        """One optimiser step: its seconds, its loss, and the largest resident memory of the process so far."""
        self.steps.append(self._ask(STEP))
        return self.steps[-1]

    def profile(self) -> list[tuple[str, float, int]]:
        """One more step, not counted: its dearest operations."""
        return [tuple(operation) for operation in self._ask(PROFILED_STEP)["operations"]]

    def stop(self) -> None:
        """Ends the child."""
        self._write.close()
        try:
            self._child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._read.close()

    def _ask(self, command: str) -> dict[str, Any]:
        _ = self.facts  # it has to be ready first
        self._write.write(command + "\n")
        self._write.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._read.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._child.wait()}; its messages stand above")
        return json.loads(line)


def _profiler() -> Any:
    import torch

    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


def _opened(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise ValueError("the child was started without a pipe")
    return pipe
