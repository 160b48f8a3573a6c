"""What happens around training steps: safety checks, the metrics file, checkpoints, progress."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.checkpoint import Progress, save_checkpoint
from medvlm_dpo.data.datamodule import PreferenceData
from medvlm_dpo.errors import TrainingStoppedError
from medvlm_dpo.files import utc_now, write_bytes_atomic
from medvlm_dpo.metrics import EXAMPLES_PER_SECOND, LOSS, TRAIN, metric
from medvlm_dpo.module import PreferenceModule
from medvlm_dpo.progress import ProgressLine
from medvlm_dpo.reference import StartingReference
from medvlm_dpo.reference_cache import distance, dtype_of
from medvlm_dpo.scoring import policy_values
from medvlm_dpo.vocab import Batch, Step, TensorName

STEP0_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05}  # nats per token
GRADIENT_CHECK_STEPS = 2  # a fresh adapter's first half has no gradient at the first step, since the second half is 0


def hosted(module: LightningModule) -> PreferenceModule:
    """The module under its own type."""
    if not isinstance(module, PreferenceModule):
        raise TypeError(f"expected a PreferenceModule, got {type(module).__name__}")
    return module


class StartCheck(Callback):
    """A fresh adapter must leave the starting model as it was: per-token log-probs of policy and start agree at step 0.

    The validation before the first step has compared them on all its pairs; without one they are compared on the first micro-batch.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Step, batch_idx: int) -> None:  # noqa: ARG002
        """Decides before step 0."""
        module = hosted(pl_module)
        if batch.index > 0 or not batch.batches:
            return
        difference = module.start_difference
        if difference is None:
            difference = _start_difference(module.backbone, batch.batches[0])
        dtype = dtype_of(module.backbone)
        tolerance, measured = STEP0_TOLERANCE.get(dtype, 1e-4), "on average by" if dtype == torch.bfloat16 else "by at most"
        print(f"step 0: policy and start differ {measured} {difference:.1e} nats a token (allowed {tolerance:g})")
        if not difference <= tolerance:
            raise TrainingStoppedError(
                f"step 0: the fresh adapter changes per-token log-probs by {difference:.3g} nats (allowed {tolerance:g}), so the policy "
                "does not start at its reference. Is dropout on, or was another adapter loaded? If the reference values came from a "
                "cache that others filled, try cache=none"
            )


@torch.no_grad()
def _start_difference(backbone: AbstractBackbone, batch: Batch) -> float:
    policy = policy_values(backbone, batch, [TensorName("policy", view, "", "logps") for view in batch.answers])["logps"]
    start = StartingReference().values(backbone, batch, [TensorName("reference", view, "", "logps") for view in batch.answers])["logps"]
    return distance(policy, start, dtype_of(backbone))


class GradientCheck(Callback):
    """After two steps every trainable tensor must have had a gradient and must have changed.

    Args:
        learning_rate: at 0, a control that must not change anything, the adapter's second half stays 0 and its first half
            never has a gradient: then there is nothing to check.
    """

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._before: dict[str, Tensor] = {}
        self._with_gradient: set[str] = set()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Step, batch_idx: int) -> None:  # noqa: ARG002
        """Keeps a copy at step 0."""
        if batch.index == 0 and self._learning_rate > 0:
            self._before = {name: weight.detach().clone() for name, weight in hosted(pl_module).backbone.trainable().items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Step, batch_idx: int) -> None:  # noqa: ARG002
        """Compares after the second step."""
        if not self._before:
            return
        trainable = hosted(pl_module).backbone.trainable()
        self._with_gradient |= {name for name, weight in trainable.items() if weight.grad is not None and bool(weight.grad.any())}
        if batch.index + 1 < GRADIENT_CHECK_STEPS:
            return
        problems = self._problems(trainable)
        self._before = {}
        if problems:
            raise TrainingStoppedError(f"after {GRADIENT_CHECK_STEPS} steps: " + "; ".join(problems))

    def _problems(self, trainable: Mapping[str, Tensor]) -> list[str]:
        idle = sorted(trainable.keys() - self._with_gradient)
        problems = (
            [f"{len(idle)} of {len(trainable)} trainable tensors had no gradient (first: {idle[0]}); the loss does not reach them"]
            if idle
            else []
        )
        unchanged = sorted(name for name, weight in trainable.items() if torch.equal(weight, self._before[name]))
        if unchanged:
            problems.append(f"{len(unchanged)} of {len(trainable)} trainable tensors did not change (first: {unchanged[0]})")
        return problems


class MetricsLog(Callback):
    """One JSON line per step and per validation in `metrics.jsonl`, in the order of a run that was never interrupted.

    Lines after the checkpoint a run resumes from are dropped, and so are the validations this process makes again: the one before
    the first step and the one after the last.

    Args:
        path: the file.
        first_step: steps already done when this process starts.
        num_steps: steps of the whole run.
    """

    def __init__(self, path: Path, *, first_step: int, num_steps: int) -> None:
        self._path = path
        again = {0, num_steps} & {first_step}
        kept = [
            line for line in json_lines(path) if line["step"] <= first_step and (metric(TRAIN, LOSS) in line or line["step"] not in again)
        ]
        write_bytes_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._clock = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Step, batch_idx: int) -> None:  # noqa: ARG002
        """Appends the metrics of a step, with its rate."""
        now = time.monotonic()
        rate = {metric(TRAIN, EXAMPLES_PER_SECOND): batch.num_examples / (now - self._clock)}
        self._clock = now
        self._append(hosted(pl_module), rate)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Appends the metrics of a validation."""
        self._append(hosted(pl_module), {})
        self._clock = time.monotonic()

    def _append(self, module: PreferenceModule, more: Mapping[str, float]) -> None:
        line = {"schema_version": 1, "step": module.step, "time": utc_now(), **module.metrics, **more}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


class Validations(Callback):
    """Validates every so many steps, counted from the start of the run: the trainer would count from where a process resumed.

    Stands before `Checkpoints`, so that a checkpoint is never newer than the validation of its step.

    Args:
        data: gives the validation pairs.
        log: notes the metrics.
        every_steps: steps between validations.
        num_steps: steps of the whole run; the validation after the last one is not made here.
    """

    def __init__(self, data: PreferenceData, log: MetricsLog, *, every_steps: int, num_steps: int) -> None:
        self._data, self._log = data, log
        self._every_steps, self._num_steps = every_steps, num_steps

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Step, batch_idx: int) -> None:  # noqa: ARG002
        """Validates when it is due."""
        module = hosted(pl_module)
        if module.step % self._every_steps or module.step >= self._num_steps:
            return
        for index, step in enumerate(self._data.val_dataloader()):
            module.validation_step(self._data.transfer_batch_to_device(step, module.device, 0), index)
        module.on_validation_epoch_end()
        self._log.on_validation_end(trainer, module)


class Checkpoints(Callback):
    """Saves every so many steps and minutes."""

    def __init__(self, folder: Path, *, every_steps: int | None, every_min: float | None) -> None:
        self._folder, self._every_steps = folder, every_steps
        self._every_s = None if every_min is None else 60 * every_min
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Step, batch_idx: int) -> None:  # noqa: ARG002
        """Saves at a step boundary when it is due."""
        module = hosted(pl_module)
        due_by_steps = self._every_steps is not None and module.step % self._every_steps == 0
        due_by_time = self._every_s is not None and time.monotonic() - self._saved_at >= self._every_s
        if due_by_steps or due_by_time:
            progress = Progress(module.step, module.num_tokens, module.statistics_states, module.reference.state())
            save_checkpoint(self._folder, module.backbone, trainer.optimizers[0], progress)
            self._saved_at = time.monotonic()


class ProgressBar(Callback):
    """Step, loss, rate and remaining time, on one line that renews itself; the launcher shows the log on a terminal."""

    def __init__(self, *, num_steps: int, first_step: int) -> None:
        self._line = ProgressLine(done=first_step, total=num_steps)
        self._started = time.monotonic()
        self._examples = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts the clock when training does."""
        self._started = time.monotonic()
        self._line.restart()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Step, batch_idx: int) -> None:  # noqa: ARG002
        """Shows progress."""
        self._examples += batch.num_examples
        rate = self._examples / (time.monotonic() - self._started)
        self._line.show(batch.index + 1, f"loss {hosted(pl_module).metrics[metric(TRAIN, LOSS)]:.4f}  {rate:.0f} examples/s  ")


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSON-lines file; a last line that was cut by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is empty or torn
    return [json.loads(line) for line in lines]
