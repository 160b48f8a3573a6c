"""PreferenceModule: hosts an objective and a backbone; manual optimisation, one loader item per optimiser step."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.data.collate import only_views
from medvlm_dpo.errors import TrainingStoppedError
from medvlm_dpo.logps import TokenValues, served_tensors
from medvlm_dpo.metrics import GRADIENT_NORM, LEARNING_RATE, TRAIN, VALIDATION, metric
from medvlm_dpo.objectives.diagnostics import Diagnostics, all_diagnostics, free_diagnostics
from medvlm_dpo.objectives.terms import Objective, TermOutput, weighted_loss
from medvlm_dpo.objectives.totals import Total, add_totals, loss_totals, means_of
from medvlm_dpo.reference import policy_values, starting_values, training_values
from medvlm_dpo.settings import TrainerSettings
from medvlm_dpo.vocab import Batch, Step, TensorName

ReferenceValues = Callable[[AbstractBackbone, Batch], TokenValues]
Tensors = Mapping[str, Tensor]


class Served(NamedTuple):
    """The tensors and facts of one micro-batch."""

    batch: Batch
    tensors: dict[str, Tensor]


class PreferenceModule(LightningModule):
    """Trains an adapter with one objective.

    Args:
        backbone: loaded, with its adapter.
        objective: what to minimise.
        reference: gives the reference's per-token values; called only when the objective asks for one.
        settings: optimiser and schedule.
        num_steps: optimiser steps of the whole run, for the schedule.
    """

    def __init__(
        self, backbone: AbstractBackbone, objective: Objective, reference: ReferenceValues, settings: TrainerSettings, *, num_steps: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = backbone.module  # registered, so that the trainer moves it
        self.backbone, self.objective, self._reference, self._settings = backbone, objective, reference, settings
        self._num_steps = num_steps
        self.step = 0  # optimiser steps done
        self.num_tokens = 0  # scored by the policy in training, padding left out
        self.optimizer = torch.optim.AdamW(
            list(backbone.trainable().values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.statistics_states: dict[str, dict[str, Tensor]] = {}
        self.metrics: dict[str, float] = {}  # of the last step or validation
        self._free, self._all = free_diagnostics(objective.demand), all_diagnostics()
        self._validated: list[dict[str, Total]] = []
        self._validated_by_type: dict[str, list[dict[str, Total]]] = {}
        self.by_error_type: dict[str, dict[str, float]] = {}  # diagnostics of the last validation, without split
        self._starting: dict[int, list[TokenValues]] = {}  # the start never changes, so validation asks for it once

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the adapter; the rate is set before every step from the step's number."""
        return self.optimizer

    def training_step(self, step: Step, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """One optimiser step: statistics over the global batch, then the micro-batches one by one, then clip and step."""
        optimizer: Any = self.optimizers()  # Lightning's wrapper, which counts steps
        optimizer.zero_grad(set_to_none=True)
        tensors = self.objective.demand.tensors | self._free.demand.tensors
        served = [partial(self._serve, batch, tensors) for batch in step.batches]
        if len(step.batches) == 1:  # one forward serves both the statistics and the loss
            only = served[0]()
            served = [lambda: only]
            statistics, self.statistics_states = self._estimate([only])
        else:
            statistics, self.statistics_states = self._estimate(self._measure(step))
        totals: list[dict[str, Total]] = []
        for serve in served:
            micro = serve()
            outputs = self.objective.evaluate(micro.tensors, micro.batch.facts, statistics, micro.batch.global_positions)
            self.manual_backward(weighted_loss(outputs).sum() / step.num_examples)
            totals.append(self._totals(outputs, micro, self._free))
        norm, rate = self._clip(), self._learning_rate(step.index)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        self.step = step.index + 1
        self.num_tokens += sum(int(batch.rows.padding_mask.sum()) for batch in step.batches)
        self.metrics = _named(TRAIN, totals) | {metric(TRAIN, GRADIENT_NORM): norm, metric(TRAIN, LEARNING_RATE): rate}

    def validation_step(self, step: Step, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Scores pairs with policy and start; states of batch statistics are thrown away."""
        if step.index not in self._starting:
            self._starting[step.index] = [starting_values(self.backbone, batch) for batch in step.batches]
        names = self.objective.demand.tensors | self._all.demand.tensors
        served = [self._serve(batch, names, start) for batch, start in zip(step.batches, self._starting[step.index], strict=True)]
        statistics, _ = self._estimate(served)
        for micro in served:
            outputs = self.objective.evaluate(micro.tensors, micro.batch.facts, statistics, micro.batch.global_positions)
            self._validated.append(self._totals(outputs, micro, self._all))
            self._account_error_types(micro)

    def on_validation_epoch_end(self) -> None:
        """Means over all validation pairs."""
        self.metrics = _named(VALIDATION, self._validated)
        self.by_error_type = {name: means_of(add_totals(parts)) for name, parts in sorted(self._validated_by_type.items())}
        self._validated, self._validated_by_type = [], {}

    def _account_error_types(self, micro: Served) -> None:
        for error_type in {name for name in micro.batch.error_types if name is not None}:
            rows = torch.tensor([name == error_type for name in micro.batch.error_types])
            tensors = {str(name): micro.tensors[str(name)][rows] for name in self._all.demand.tensors}
            facts = {name: fact[rows] for name, fact in micro.batch.facts.items()}
            self._validated_by_type.setdefault(error_type, []).append(self._all.totals(tensors, facts))

    def _serve(self, batch: Batch, names: frozenset[TensorName], start: TokenValues | None = None) -> Served:
        gradient_views = self.objective.demand.gradient_views
        policy = training_values(self.backbone, batch, gradient_views) if torch.is_grad_enabled() else policy_values(self.backbone, batch)
        values: dict[str, TokenValues] = {"policy": policy}
        if any(name.model == "reference" for name in names):
            values["reference"] = start if start is not None else self._reference(self.backbone, batch)
        return Served(batch, served_tensors(names, batch, values))

    @torch.no_grad()
    def _measure(self, step: Step) -> list[Served]:
        """The estimators' tensors of all micro-batches, in a pass of their own: the statistic must not depend on the micro-batch."""
        names = self.objective.demand.estimator_tensors
        if not names:
            return [Served(batch, {}) for batch in step.batches]
        views = {name.view for name in names}
        return [self._serve(only_views(batch, views), names) for batch in step.batches]

    def _estimate(self, served: list[Served]) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        demand = self.objective.demand
        order = torch.cat([micro.batch.global_positions for micro in served]).argsort()
        tensors = {
            str(name): torch.cat([micro.tensors[str(name)].detach() for micro in served])[order] for name in demand.estimator_tensors
        }
        facts = {name: torch.cat([micro.batch.facts[name] for micro in served])[order] for name in demand.estimator_facts}
        return self.objective.estimate(tensors, facts, self.statistics_states)

    def _totals(self, outputs: list[TermOutput], micro: Served, diagnostics: Diagnostics) -> dict[str, Total]:
        facts = micro.batch.facts
        return loss_totals(self.objective, outputs, facts) | diagnostics.totals(micro.tensors, facts)

    def _clip(self) -> float:
        """Clips the global gradient norm; returns it as it was before.

        Raises:
            TrainingStoppedError: if it is not finite.
        """
        limit = self._settings.gradient_clip_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.backbone.trainable().values()), limit))
        if not math.isfinite(norm):
            raise TrainingStoppedError(
                f"step {self.step}: the gradient norm is {norm}; lower trainer.learning_rate or look at the data of this step"
            )
        return norm

    def _learning_rate(self, index: int) -> float:
        """Linear warm-up, then a cosine to 0 (https://arxiv.org/abs/1608.03983, one cycle)."""
        warmup = math.ceil(self._settings.lr_warmup_fraction * self._num_steps)
        if index < warmup:
            return self._settings.learning_rate * (index + 1) / warmup
        progress = (index - warmup) / max(1, self._num_steps - warmup)
        return self._settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _named(split: str, totals: list[dict[str, Total]]) -> dict[str, float]:
    """Means under their full names."""
    return {metric(split, name): value for name, value in means_of(add_totals(totals)).items()}
