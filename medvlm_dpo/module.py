"""PreferenceModule: hosts an objective and a backbone; manual optimisation, one loader item per optimiser step."""

import math
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from medvlm_dpo import ranks
from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.data.collate import answers_of_views
from medvlm_dpo.errors import TrainingStoppedError
from medvlm_dpo.logps import TokenValues, served_tensors
from medvlm_dpo.metrics import GRADIENT_NORM, LEARNING_RATE, LENGTH_R2, TRAIN, VALIDATION, metric
from medvlm_dpo.objectives.calls import Statistic
from medvlm_dpo.objectives.diagnostics import (
    Diagnostics,
    free_diagnostics,
    margins_and_lengths,
    squared_correlation,
    validation_diagnostics,
)
from medvlm_dpo.objectives.terms import Objective, TermOutput, weighted_loss
from medvlm_dpo.objectives.totals import Total, add_totals, loss_totals, means_of, on_cpu
from medvlm_dpo.reference import AbstractReference, StartingReference
from medvlm_dpo.reference_cache import distance, dtype_of
from medvlm_dpo.scoring import HIDDEN, REFERENCE, policy_values
from medvlm_dpo.settings import TrainerSettings
from medvlm_dpo.vocab import Batch, Step, TensorName, views_scored_by

Names = Collection[TensorName]


class Served(NamedTuple):
    """One micro-batch with its tensors: those the objective asks for, and those of the diagnostics, whose reference is the start."""

    batch: Batch
    tensors: dict[str, Tensor]
    diagnosed: dict[str, Tensor]


class PreferenceModule(LightningModule):
    """Trains an adapter with one objective.

    Args:
        backbone: loaded, with its adapter.
        objective: what to minimise.
        reference: serves the reference's values; asked only when the objective asks for one.
        start: serves the starting model's values, which validation compares with.
        settings: optimiser and schedule.
        num_steps: optimiser steps of the whole run, for the schedule.
    """

    def __init__(
        self,
        backbone: AbstractBackbone,
        objective: Objective,
        reference: AbstractReference,
        settings: TrainerSettings,
        *,
        num_steps: int,
        start: AbstractReference | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = backbone.module  # registered, so that the trainer moves it
        self.backbone, self.objective, self.reference, self._settings = backbone, objective, reference, settings
        self._start = start if start is not None else StartingReference()
        self._num_steps = num_steps
        self.step = 0  # optimiser steps done
        self.num_tokens = 0  # scored by the policy in training, padding left out
        self.optimizer = torch.optim.AdamW(
            list(backbone.trainable().values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.statistics_states: dict[str, dict[str, Tensor]] = {}
        self.metrics: dict[str, float] = {}  # of the last step or validation
        self._free, self._all = free_diagnostics(objective.demand), validation_diagnostics(objective.demand)
        self._validated: list[dict[str, Total]] = []
        self._validated_by_type: dict[str, list[dict[str, Total]]] = {}
        self._validated_pairs: list[Tensor] = []  # [pair, 2]: margin and difference of lengths
        self.by_error_type: dict[str, dict[str, float]] = {}  # diagnostics of the last validation, without split
        self._starting: dict[int, list[TokenValues]] = {}  # the start never changes, so validation asks for it once
        self.start_difference: float | None = None  # of policy and start at step 0, nats a token: a fresh adapter changes nothing

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
        ranks.add_gradients(self.backbone.trainable().values())
        norm, rate = self._clip(), self._learning_rate(step.index)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        self.step = step.index + 1
        self.reference.after_step(self.backbone, self.step)
        self.num_tokens += sum(ranks.gathered(sum(int(batch.rows.padding_mask.sum()) for batch in step.batches)))
        self.metrics = _named(TRAIN, totals) | {metric(TRAIN, GRADIENT_NORM): norm, metric(TRAIN, LEARNING_RATE): rate}

    def validation_step(self, step: Step, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Scores pairs with policy, reference and start; states of batch statistics are thrown away."""
        served = [self._serve_validation(batch, start) for batch, start in zip(step.batches, self._starts(step), strict=True)]
        statistics, _ = self._estimate(served)
        for micro in served:
            outputs = self.objective.evaluate(micro.tensors, micro.batch.facts, statistics, micro.batch.global_positions)
            self._validated.append(self._totals(outputs, micro, self._all))
            self._validated_pairs.append(margins_and_lengths(micro.diagnosed, micro.batch.facts))
            self._account_error_types(micro)

    def on_validation_epoch_end(self) -> None:
        """Means over all validation pairs."""
        self.metrics = _named(VALIDATION, self._validated)
        pairs = torch.cat([pair for part in ranks.gathered(self._validated_pairs) for pair in part])
        if (explained := squared_correlation(pairs)) is not None:
            self.metrics[metric(VALIDATION, LENGTH_R2)] = explained
        by_type: dict[str, list[dict[str, Total]]] = {}
        for part in ranks.gathered(self._validated_by_type):
            for name, totals in part.items():
                by_type.setdefault(name, []).extend(totals)
        self.by_error_type = {name: means_of(add_totals(totals)) for name, totals in sorted(by_type.items())}
        self._validated, self._validated_by_type, self._validated_pairs = [], {}, []

    def _account_error_types(self, micro: Served) -> None:
        for error_type in {name for name in micro.batch.error_types if name is not None}:
            rows = torch.tensor([name == error_type for name in micro.batch.error_types])
            tensors = {name: value[rows] for name, value in micro.diagnosed.items()}
            facts = {name: fact[rows] for name, fact in micro.batch.facts.items()}
            self._validated_by_type.setdefault(error_type, []).append(on_cpu(self._all.totals(tensors, facts)))

    def _serve(self, batch: Batch, names: Names) -> Served:
        reference = self.reference.values(self.backbone, batch, names) if views_scored_by(REFERENCE, names) else {}
        policy = policy_values(self.backbone, batch, names, reference)
        tensors = served_tensors(names, batch, {"policy": policy, "reference": reference})
        return Served(batch, tensors, tensors)

    def _serve_validation(self, batch: Batch, start: TokenValues) -> Served:
        asked, diagnosed = self.objective.demand.tensors, self._all.demand.tensors
        moved = not self.reference.is_start and self.objective.demand.needs_reference
        reference = self.reference.values(self.backbone, batch, asked) if moved else start
        policy = policy_values(self.backbone, batch, asked | diagnosed, reference)
        if self.step == 0:
            self._note_start_difference(batch, policy, start)
        tensors = served_tensors(asked, batch, {"policy": policy, "reference": reference})
        return Served(batch, tensors, served_tensors(diagnosed, batch, {"policy": policy, "reference": start}))

    def _note_start_difference(self, batch: Batch, policy: TokenValues, start: TokenValues) -> None:
        views = {name.view for name in self._all.demand.tensors if name.model == REFERENCE and name.base == "logps"}
        tokens = answers_of_views(batch, views)[batch.rows.answer_index]
        if bool(tokens.any()):
            found = distance(policy["logps"][tokens], start["logps"][tokens], dtype_of(self.backbone))
            # Unlike Python's, this maximum does not lose what is not a number.
            self.start_difference = float(torch.tensor([found, self.start_difference or 0.0], dtype=torch.float64).max())

    def _starts(self, step: Step) -> list[TokenValues]:
        """The starting model's values; hidden states are too large to be kept and are computed again."""
        if step.index in self._starting:
            return self._starting[step.index]
        names = self.objective.demand.tensors | self._all.demand.tensors
        values = [self._start.values(self.backbone, batch, names) for batch in step.batches]
        if not any(HIDDEN in value for value in values):
            self._starting[step.index] = values
        return values

    @torch.no_grad()
    def _measure(self, step: Step) -> list[Served]:
        """The estimators' tensors of all micro-batches, in a pass of their own: the statistic must not depend on the micro-batch."""
        names = self.objective.demand.estimator_tensors
        if not names:
            return [Served(batch, {}, {}) for batch in step.batches]
        return [self._serve(batch, names) for batch in step.batches]

    def _estimate(self, served: Sequence[Served]) -> tuple[dict[str, Statistic], dict[str, dict[str, Tensor]]]:
        """The batch statistics, from the rows of all ranks in the order of the global batch."""
        demand = self.objective.demand
        names = sorted(map(str, demand.estimator_tensors))
        rows = {name: _joined([micro.tensors[name].detach() for micro in served]) for name in names}
        facts = {name: _joined([micro.batch.facts[name] for micro in served]) for name in demand.estimator_facts}
        parts = ranks.gathered((_joined([micro.batch.global_positions for micro in served]).long(), rows, facts))
        order = torch.cat([positions for positions, _, _ in parts]).argsort()
        every_row = {name: torch.cat([part[name] for _, part, _ in parts])[order] for name in rows}
        every_fact = {name: torch.cat([part[name] for _, _, part in parts])[order] for name in facts}
        return self.objective.estimate(every_row, every_fact, self.statistics_states)

    def _totals(self, outputs: list[TermOutput], micro: Served, diagnostics: Diagnostics) -> dict[str, Total]:
        facts = micro.batch.facts
        return loss_totals(self.objective, outputs, facts) | diagnostics.totals(micro.diagnosed, facts)

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


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor on the CPU where ranks exchange it; a rank may have nothing."""
    joined = torch.cat(list(parts)) if parts else torch.zeros(0, dtype=torch.float64)
    return joined.cpu() if ranks.num_ranks() > 1 else joined


def _named(split: str, totals: list[dict[str, Total]]) -> dict[str, float]:
    """Means over all ranks under their full names."""
    every = [own for part in ranks.gathered([on_cpu(own) for own in totals]) for own in part]
    return {metric(split, name): value for name, value in means_of(add_totals(every)).items()}
