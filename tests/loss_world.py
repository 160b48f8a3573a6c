"""What the tests of losses share: the sets of made-up values, and one way from the name of a loss to its numbers."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor

from medvlm_dpo.config.catalogue import compose_loss
from medvlm_dpo.objectives.calls import find
from medvlm_dpo.objectives.terms import Objective, build_objective, weighted_loss

Values = Mapping[str, Sequence[Any]]
NONE: Mapping[str, Any] = MappingProxyType({})


def column(values: Sequence[Any]) -> Tensor:
    """[example], or [example, token] right-padded with 0, in float64."""
    if not isinstance(values[0], list | tuple):
        return torch.tensor(values, dtype=torch.float64)
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.float64) for row in values], batch_first=True)


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    return compose_loss(overrides).node


def loss_node(name: str, *overrides: str) -> dict[str, Any]:
    """A loss as a command composes it: `loss_node("dpo", "loss.beta=0.3")`."""
    return _composed((f"loss={name}", *overrides))


@dataclass(frozen=True)
class Batch:
    """One set of values: sums and tokens of views by model, other per-example quantities by their whole name, and facts.

    Args:
        sums: by `<model>_<view>` the summed log-probabilities, one per example.
        lengths: by answer (`chosen`, `rejected`) the response tokens, one per example.
        tokens: by `<model>_<view>.<base>` the values per token, one list per example; their sums are served too.
        more: by whole tensor name, e.g. `policy_chosen_forward_kl`.
        facts: by name, beyond lengths and presence.
    """

    sums: Values
    lengths: Values
    tokens: Values = field(default_factory=dict)
    more: Values = field(default_factory=dict)
    facts: Values = field(default_factory=dict)

    @property
    def num_examples(self) -> int:
        return len(self.lengths["chosen"])

    def served(self) -> dict[str, Tensor]:
        """Every tensor by its name: sums, means and tokens."""
        width = max(int(column(values).max()) for values in self.lengths.values())
        tensors: dict[str, Tensor] = {}
        for key, values in self.sums.items():
            self._serve(key, "logps", column(values), tensors)
        for key, values in self.tokens.items():
            head, base = key.split(".")
            token = torch.nn.functional.pad(column(values), (0, width - column(values).shape[1]))
            tensors[f"{head}_token_{base}"] = token
            self._serve(head, base, token.sum(dim=1), tensors)
        return tensors | {name: column(values) for name, values in self.more.items()}

    def _serve(self, head: str, base: str, total: Tensor, tensors: dict[str, Tensor]) -> None:
        answer = "rejected" if head.partition("_")[2].startswith("rejected") else "chosen"
        tensors[f"{head}_{base}"] = total
        tensors[f"{head}_mean_{base}"] = total / column(self.lengths[answer])

    def served_facts(self) -> dict[str, Tensor]:
        """Every fact by its name; all answers are present unless `facts` says otherwise."""
        width = max(int(column(values).max()) for values in self.lengths.values())
        lengths = {f"{answer}_lengths": column(values) for answer, values in self.lengths.items()}
        present = {f"{answer}_present": torch.ones(self.num_examples, dtype=torch.float64) for answer in self.lengths}
        facts = {name: column(values) for name, values in self.facts.items()}
        masks = {name: torch.nn.functional.pad(fact, (0, width - fact.shape[1])) for name, fact in facts.items() if fact.ndim == 2}
        return {**lengths, **present, **facts, **masks}


_CORRUPT = ("chosen_corrupt", "rejected_corrupt")
# Set A is degenerate twice: the image margin equals the preference margin, and both mean log-probabilities are equal.
A = Batch(
    sums={f"policy_{view}": [-13.0] for view in _CORRUPT} | {f"reference_{view}": [-12.5] for view in _CORRUPT},
    lengths={"chosen": [5], "rejected": [6]},
    tokens={
        "policy_chosen.logps": [[-1, -3, -2, -1.5, -2.5]],  # sum -10
        "reference_chosen.logps": [[-1.2, -3.1, -2.4, -1.8, -2.5]],  # -11
        "policy_rejected.logps": [[-1, -3, -2, -2.5, -1.5, -2]],  # -12
        "reference_rejected.logps": [[-1.2, -2.6, -2.2, -1.9, -1.3, -2.3]],  # -11.5
    },
    more={
        "policy_chosen_forward_kl": [0.3], "policy_rejected_forward_kl": [0.5],
        "detached_policy_chosen_mean_collision_logps": [-0.9], "detached_policy_rejected_mean_collision_logps": [-0.9],
        "policy_chosen_hallucinated_logps": [-13.0], "reference_chosen_hallucinated_logps": [-12.5],
    },
    facts={"pair_weight": [0.6], "chosen_changed_mask": [[0, 0, 0, 1, 1]], "rejected_changed_mask": [[0, 0, 0, 1, 1, 1]]},
)  # fmt: skip
B = Batch(
    sums={f"policy_{view}": [-13.2] for view in _CORRUPT} | {f"reference_{view}": [-12.3] for view in _CORRUPT},
    lengths={"chosen": [5], "rejected": [8]},
    tokens={
        "policy_chosen.logps": [[-0.9, -2.8, -2.1, -1.6, -2.3]],  # -9.7
        "reference_chosen.logps": [[-1.2, -3, -2.4, -1.9, -2.5]],  # -11
        "policy_rejected.logps": [[-0.9, -2.8, -2, -1.7, -1.3, -1.2, -1.5, -1]],  # -12.4
        "reference_rejected.logps": [[-1.2, -3, -1.6, -1.5, -0.9, -1, -1.3, -1.1]],  # -11.6
    },
    more={
        "policy_chosen_forward_kl": [0.3], "policy_rejected_forward_kl": [0.5],
        "detached_policy_chosen_mean_collision_logps": [-0.9], "detached_policy_rejected_mean_collision_logps": [-0.9],
        "policy_chosen_hallucinated_logps": [-13.2], "reference_chosen_hallucinated_logps": [-12.3],
    },
    facts={"pair_weight": [0.6], "chosen_changed_mask": [[0, 0, 1, 1, 0]], "rejected_changed_mask": [[0, 0, 1, 1, 1, 1, 0, 0]]},
)  # fmt: skip
# Set C: the policy is worse than the reference on every answer, a = -1.2, b = -1.5, and c = -1.3 on the corrupted image.
C = Batch(
    sums={"policy_rejected_corrupt": [-14.1], "reference_rejected_corrupt": [-13.3]},
    lengths={"chosen": [5], "rejected": [7]},
    tokens={
        "policy_chosen.logps": [[-1.4, -2.6, -2.2, -1.9, -3.1]],  # -11.2
        "reference_chosen.logps": [[-1.2, -2.4, -2.1, -1.7, -2.6]],  # -10
        "policy_rejected.logps": [[-0.8, -2.2, -1.7, -2.4, -1.1, -1.9, -1.6]],  # -11.7
        "reference_rejected.logps": [[-1, -2, -1.5, -1.8, -1.2, -1.4, -1.3]],  # -10.2
        "policy_chosen_corrupt.logps": [[-1.9, -3.3, -2.4, -2.6, -3.2]],  # -13.4
        "reference_chosen_corrupt.logps": [[-1.6, -3, -2.4, -2.1, -3]],  # -12.1
        "policy_chosen.image_kl": [[0.05, 0.3, 0.1, 0.02, 0.4]],
    },
    more={
        "policy_chosen_forward_kl": [0.4], "policy_rejected_forward_kl": [0.9],
        "detached_policy_chosen_mean_collision_logps": [-2.9], "detached_policy_rejected_mean_collision_logps": [-2.4],
        "policy_chosen_hallucinated_logps": [-8.2], "reference_chosen_hallucinated_logps": [-8.9],
        "policy_rejected_top_wrong_logps": [-9.1], "reference_rejected_top_wrong_logps": [-8.8],
        "policy_chosen_corrupt_top_wrong_logps": [-7.7], "reference_chosen_corrupt_top_wrong_logps": [-8.3],
    },
    facts={"pair_weight": [0.6], "chosen_changed_mask": [[0, 1, 1, 0, 0]], "rejected_changed_mask": [[0, 1, 1, 1, 0, 0, 0]]},
)  # fmt: skip
# Three pairs: a = 1, -.5, .6; b = -.5, .2, -1. The unmatched answers estimate a z0 of .1, the mean of -.2, .6 and -.1.
THREE = Batch(
    sums={
        "policy_chosen": [-10, -8, -15], "policy_rejected": [-12, -9, -14],
        "reference_chosen": [-11, -7.5, -15.6], "reference_rejected": [-11.5, -9.2, -13],
        "policy_unmatched": [-30.2, -25.0, -28.4], "reference_unmatched": [-30.0, -25.6, -28.3],
    },
    lengths={"chosen": [5, 4, 8], "rejected": [6, 5, 7]},
    facts={"uniform_draw": [0.5, 0.5, 0.5]},
)  # fmt: skip


@dataclass(frozen=True)
class Golden:
    """One row: a loss with some settings changed, the values, and what must come out, one number per example.

    Args:
        loss: name of the yaml.
        batch: the values.
        expected: the loss of every example.
        overrides: as on the command line, e.g. `loss.beta=0.3`.
        rewards: by view, what must come out as rewards of the first term that has them.
        tensors: replaced or added tensors, by name.
        facts: replaced or added facts, by name.
        node: the composed yaml where it is not the one that the command gives (mutants of sums).
    """

    loss: str
    batch: Batch
    expected: Sequence[float]
    overrides: tuple[str, ...] = ()
    rewards: Values = field(default_factory=dict)
    tensors: Values = field(default_factory=dict)
    facts: Values = field(default_factory=dict)
    node: Mapping[str, Any] | None = None

    def served(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tensors (those of the policy as leaves with gradient, detached twins apart) and facts."""
        tensors = self.batch.served() | {name: column(values) for name, values in self.tensors.items()}
        twins = {f"detached_{name}": value.clone() for name, value in tensors.items() if name.startswith("policy_")}
        tensors = {**twins, **tensors}
        live = {name: value.requires_grad_(name.startswith("policy_")) for name, value in tensors.items()}
        return live, self.batch.served_facts() | {name: column(values) for name, values in self.facts.items()}


@dataclass(frozen=True)
class Computed:
    """What a loss made of a row: the loss per example, the rewards of the terms together, and gradients of the summed loss by tensor."""

    loss: Tensor
    rewards: dict[str, Tensor]
    gradients: dict[str, Tensor]


def built(golden: Golden, replaced: Mapping[str, str] = NONE) -> Objective:
    """The loss of a row, built from its yaml, with modules replaced by others (mutants)."""
    node = golden.node or loss_node(golden.loss, *golden.overrides)
    return build_objective(_replaced(node, replaced), batch_size=max(2, golden.batch.num_examples))


def compute(golden: Golden, replaced: Mapping[str, str] = NONE) -> Computed:
    """Loss, rewards and gradients of a row."""
    objective = built(golden, replaced)
    tensors, facts = golden.served()
    outputs = evaluated(objective, tensors, facts)
    loss = weighted_loss(outputs)
    names = sorted(str(name) for name in objective.demand.gradient_tensors)
    found = torch.autograd.grad(loss.sum(), [tensors[name] for name in names], allow_unused=True)
    gradients = {name: torch.zeros_like(tensors[name]) if grad is None else grad for name, grad in zip(names, found, strict=True)}
    rewards: dict[str, Tensor] = {}
    for output in outputs:
        rewards = {**output.output.rewards, **rewards}
    return Computed(loss.detach(), rewards, gradients)


def evaluated(objective: Objective, tensors: Mapping[str, Tensor], facts: Mapping[str, Tensor]) -> list[Any]:
    """The terms' outputs for one whole batch, statistics estimated from it."""
    asked = {str(name): find(str(name), tensors) for name in objective.demand.estimator_tensors}
    statistics, _ = objective.estimate({name: value for name, value in asked.items() if value is not None}, facts, {})
    return objective.evaluate(tensors, facts, statistics, torch.arange(len(next(iter(facts.values())))))


def _replaced(node: Any, replaced: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _target(value, replaced) if key == "_target_" else _replaced(value, replaced) for key, value in node.items()}
    return node


def _target(target: str, replaced: Mapping[str, str]) -> str:
    module, _, name = target.rpartition(".")
    return f"{replaced.get(module, module)}.{name}"


def targets_of(node: Any) -> set[str]:
    """The names of all functions in a node."""
    return {target.rpartition(".")[2] for target in _targets(node)}


def modules_of(node: Any) -> set[str]:
    """Every module that a node's functions come from."""
    return {target.rpartition(".")[0] for target in _targets(node)}


def _targets(node: Any) -> set[str]:
    if not isinstance(node, dict):
        return set()
    own = {str(node["_target_"])} if "_target_" in node else set()
    return own.union(*(_targets(value) for value in node.values()))


def own_functions(module: ModuleType) -> list[Any]:
    """The public and private functions a module defines itself."""
    return [value for value in vars(module).values() if inspect.isfunction(value) and value.__module__ == module.__name__]


def misses(golden: Golden, replaced: Mapping[str, str] = NONE) -> str | None:
    """How a row is missed, or None where loss, rewards and gradients are right; gradients are compared with central differences."""
    computed = compute(golden, replaced)
    expected = column(golden.expected)
    if computed.loss.shape != expected.shape or not torch.allclose(computed.loss, expected, rtol=0, atol=1e-6):
        return f"loss {computed.loss.tolist()}, expected {list(golden.expected)}"
    for view, values in golden.rewards.items():
        if view not in computed.rewards or not torch.allclose(computed.rewards[view], column(values), rtol=0, atol=1e-6):
            return f"{view} reward {computed.rewards.get(view)}, expected {values}"
    return gradient_fault(golden, computed, replaced)


def gradient_fault(golden: Golden, computed: Computed, replaced: Mapping[str, str] = NONE, *, step: float = 1e-5) -> str | None:
    """Where a gradient is not the derivative of the loss with respect to that tensor alone, statistics and detached twins held fixed."""
    objective = built(golden, replaced)
    tensors, facts = golden.served()
    asked = {str(name): find(str(name), tensors) for name in objective.demand.estimator_tensors}
    statistics, _ = objective.estimate({name: value for name, value in asked.items() if value is not None}, facts, {})
    positions = torch.arange(golden.batch.num_examples)

    def total(name: str, change: Tensor) -> float:
        moved = {**tensors, name: tensors[name].detach() + change}
        with torch.no_grad():
            return float(weighted_loss(objective.evaluate(moved, facts, statistics, positions)).sum())

    for name, gradient in computed.gradients.items():
        for place in range(gradient.numel()):
            change = torch.zeros(gradient.numel(), dtype=torch.float64).index_fill(0, torch.tensor([place]), step).reshape(gradient.shape)
            numeric = (total(name, change) - total(name, -change)) / (2 * step)
            if abs(numeric - float(gradient.flatten()[place])) > 1e-5 * max(1.0, abs(numeric)):
                return f"gradient of {name} is {gradient.flatten()[place]:.6f}, the derivative {numeric:.6f}"
    return None


# --- all rows: one file of tests/golden for each file of objectives/ that holds losses --------------------------------

PACKAGE = "medvlm_dpo.objectives"


@cache
def rows() -> tuple[dict[str, Golden], dict[str, str]]:
    """Every golden row by name, and the mutants that are no mistakes with the reason."""
    families = [importlib.import_module(f"golden.{path.stem}") for path in sorted((Path(__file__).parent / "golden").glob("*.py"))]
    goldens = {name: golden for family in families for name, golden in family.GOLDENS.items()}
    return goldens, {what: why for family in families for what, why in family.EQUIVALENT.items()}


def golden_rows() -> dict[str, Golden]:
    """Every golden row by name."""
    return rows()[0]


def golden_modules() -> list[str]:
    """The files of objectives/ that some row uses."""
    used = {module for golden in golden_rows().values() for module in modules_of(loss_node(golden.loss, *golden.overrides))}
    return sorted(module.removeprefix(f"{PACKAGE}.") for module in used)
