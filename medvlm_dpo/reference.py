"""The frozen policy that objectives compare with: the starting model, or a copy that follows the policy."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from medvlm_dpo.backbones.adapter import Factors, mixed_factors
from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.errors import InputError
from medvlm_dpo.logps import TokenValues
from medvlm_dpo.scoring import frozen_values
from medvlm_dpo.vocab import Batch, TensorName


class AbstractReference(ABC):
    """What serves the `reference_` tensors of a run."""

    is_start: bool  # whether it is the starting model in every step

    @abstractmethod
    def values(self, backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName]) -> TokenValues:
        """Per-token values by base over the views that are asked of the reference, and its hidden states where a base reads them."""

    def after_step(self, backbone: AbstractBackbone, step: int) -> None:  # noqa: B027 - a fixed reference has nothing to do
        """Called after every optimiser step with the number of steps done."""

    def note(self, num_steps: int) -> str | None:
        """What the user should know about this reference in a run of so many steps."""
        del num_steps
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep: plain values and tensors."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Takes back what `state` gave."""


class StartingReference(AbstractReference):
    """The starting model: the same weights with the adapter switched off."""

    is_start = True

    def values(self, backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName]) -> TokenValues:
        """One pass without adapter."""
        with backbone.adapter_disabled():
            return frozen_values(backbone, batch, names)


class MovingReference(AbstractReference):
    """A reference that follows the policy: every `every_steps` steps it becomes `mix` x policy + (1 - mix) x itself.

    Under LoRA the mixture is kept as frozen snapshots of the adapter with coefficients mix, mix (1 - mix), mix (1 - mix)^2, ...; the
    start, whose adapter is 0, has the rest. Their sum is exact, while mixing the two factors of the adapters separately is not.
    Source: TR-DPO, https://arxiv.org/abs/2404.09656 (`mix` is its alpha, `every_steps` its tau; mix 1 is its hard update).

    Args:
        mix: weight of the policy in an update, in (0, 1].
        every_steps: optimiser steps between updates, >= 1.
    """

    is_start = False

    def __init__(self, *, mix: float, every_steps: int) -> None:
        problems = [f"reference.mix must be in (0, 1], got {mix}"] if not 0 < mix <= 1 else []
        problems += [f"reference.every_steps must be >= 1, got {every_steps}"] if every_steps < 1 else []
        if problems:
            raise InputError(problems)
        self._mix, self._every_steps = mix, every_steps
        self._snapshots: list[Factors] = []
        self._coefficients: list[float] = []
        self._updated_at = 0
        self._mixed: Factors | None = None  # of the snapshots, made when it is first needed

    def values(self, backbone: AbstractBackbone, batch: Batch, names: Collection[TensorName]) -> TokenValues:
        """One pass with the mixture of the snapshots in place of the adapter."""
        if self._mixed is None and self._snapshots:
            self._mixed = mixed_factors(self._snapshots, self._coefficients)
        with backbone.adapter_replaced(self._mixed) if self._mixed is not None else backbone.adapter_disabled():
            return frozen_values(backbone, batch, names)

    def after_step(self, backbone: AbstractBackbone, step: int) -> None:
        """Takes a snapshot when it is due."""
        if step % self._every_steps:
            return
        kept = [(value * (1 - self._mix), tensors) for value, tensors in zip(self._coefficients, self._snapshots, strict=True)]
        kept = [(value, tensors) for value, tensors in kept if value > 0]  # after a hard update only the newest counts
        kept.append((self._mix, backbone.adapter_factors()))
        self._coefficients, self._snapshots = [value for value, _ in kept], [tensors for _, tensors in kept]
        self._updated_at, self._mixed = step, None
        # On a line of its own: the progress bar has left the cursor at its end.
        print(f"\nstep {step}: the reference moved towards the policy ({len(self._snapshots)} snapshots)")

    def note(self, num_steps: int) -> str | None:
        """Says when the run is over before the reference could move."""
        if num_steps > self._every_steps:
            return None
        return (
            f"reference.every_steps={self._every_steps} is not less than the {num_steps} steps of this run: the reference never moves, "
            "so this is the same loss with reference=adapter_off; lower it"
        )

    def state(self) -> dict[str, Any]:
        """Snapshots, their coefficients, and the step of the last update."""
        return {"snapshots": self._snapshots, "coefficients": self._coefficients, "updated_at": self._updated_at}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        self._snapshots, self._coefficients = list(state["snapshots"]), list(state["coefficients"])
        self._updated_at, self._mixed = int(state["updated_at"]), None
