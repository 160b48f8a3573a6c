"""TRL's trainers around a stand-in model, and our losses on the same texts.

TRL's own methods run: a trainer is made without its constructor, which would want data sets and weights, and gets the attributes that its
loss reads. The stand-in answers with given logits, so that TRL's shifting, masking, summing and its formulas all take part.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import torch
from loss_world import evaluated
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput
from trl_texts import IGNORED, World

from medvlm_dpo.objectives.terms import build_objective, weighted_loss

TrainerClass = TypeVar("TrainerClass")


def same(value: Any) -> Any:
    """The gathering of one process."""
    return value


# --- TRL's side ------------------------------------------------------------------------------------------------------


class StandIn(torch.nn.Module):
    """A model that knows the logits of the texts it was made with, and finds them by the token ids it is called with."""

    is_gradient_checkpointing = False

    def __init__(self, known: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.known = known

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        use_cache: bool,
        labels: Tensor | None = None,
        fused_lm_head: bool = False,
    ) -> Any:
        assert attention_mask.shape == input_ids.shape
        assert not use_cache
        logits = next(logits for ids, logits in self.known if ids.shape == input_ids.shape and torch.equal(ids, input_ids))
        if not fused_lm_head or labels is None:
            return SimpleNamespace(logits=logits)
        return scored(logits, labels)


def scored(logits: Tensor, labels: Tensor) -> FusedCausalLMOutput:
    """What TRL's fused head returns, in float64 too, where TRL's own accumulates in float32. Metrics without influence on a loss are 0."""
    distribution, shifted = logits[:, :-1].log_softmax(-1), labels[:, 1:]
    padding = shifted == IGNORED
    label = distribution.gather(-1, shifted.clamp(min=0)[..., None]).squeeze(-1).masked_fill(padding, 0)
    collision = (2 * distribution.detach()).logsumexp(-1).masked_fill(padding, 0)
    zeros = torch.zeros_like(label.detach())
    return FusedCausalLMOutput(log_probs=label, entropy=zeros, log_sum_sq_probs=collision, mean_logits=zeros, is_top1=zeros.bool())


ATTRIBUTES: Mapping[str, Any] = {
    "accelerator": SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same),
    "aux_loss_enabled": False, "precompute_ref_logps": False, "is_encoder_decoder": False, "calculate_KL": True,
    "ld_alpha": None, "f_divergence_type": "reverse_kl", "label_smoothing": 0.0, "use_weighting": False,
    "desirable_weight": 1.0, "undesirable_weight": 1.0, "alpha": 0.0, "pad_token_id": 0, "padding_value": 0,
    "_total_train_tokens": 0, "_tp_size": 1,
}  # fmt: skip


def trainer(of: type[TrainerClass], settings: Mapping[str, Any], policy: StandIn, reference: StandIn) -> TrainerClass:
    """One of TRL's trainers with the attributes its loss reads."""
    made = object.__new__(of)
    arguments = SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=settings.get("discopop_tau"))
    own = {"args": arguments, "model": policy, "ref_model": reference, "_metrics": {"train": defaultdict(list)}}
    vars(made).update({**ATTRIBUTES, **own, **settings})
    return made


class Outcome(NamedTuple):
    """A loss as the optimiser sees it: the mean, its gradient with respect to the policy's logits, and mean rewards by view."""

    loss: Tensor
    gradient: Tensor
    rewards: Mapping[str, float]


def is_no_adapter(_model: torch.nn.Module) -> bool:
    """For TRL's question whether a model is one of PEFT, which reads the metadata of that package on every call."""
    return False


@contextmanager
def surroundings(of: type[Any]) -> Iterator[None]:
    """TRL turns some settings into tensors of the default type, which in float32 would cost digits."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(sys.modules[of.__module__], "is_peft_model", new=is_no_adapter):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def trl_pairs(of: type[Any], settings: Mapping[str, Any], world: World, dtype: torch.dtype = torch.float64) -> Outcome:
    """`DPOTrainer._compute_loss`."""
    texts = world.texts
    policy = texts.policy.detach().to(dtype).requires_grad_()
    models = [StandIn([(texts.input_ids, logits)]) for logits in (policy, texts.reference.to(dtype))]
    made = trainer(of, settings, *models)
    inputs = {"input_ids": texts.input_ids, "attention_mask": texts.attention_mask, "completion_mask": texts.completion_mask}
    with surroundings(of):
        return _outcome(made._compute_loss(models[0], inputs, False), policy, made._metrics["train"])


def trl_answers(of: type[Any], settings: Mapping[str, Any], world: World) -> Outcome:
    """`KTOTrainer._compute_loss`."""
    texts, unmatched = world.texts, world.unmatched
    assert unmatched is not None
    policy = texts.policy.detach().requires_grad_()
    models = [
        StandIn([(texts.input_ids, policy), (unmatched.input_ids, unmatched.policy)]),
        StandIn([(texts.input_ids, texts.reference), (unmatched.input_ids, unmatched.reference)]),
    ]
    made = trainer(of, settings, *models)
    inputs = {
        "input_ids": texts.input_ids, "attention_mask": texts.attention_mask, "completion_mask": texts.completion_mask,
        "KL_input_ids": unmatched.input_ids, "KL_attention_mask": unmatched.attention_mask, "KL_completion_mask": unmatched.completion_mask,
        "label": world.desirable,
    }  # fmt: skip
    with surroundings(of):
        return _outcome(made._compute_loss(models[0], inputs, False), policy, made._metrics["train"])


def trl_policy_only(of: type[Any], settings: Mapping[str, Any], world: World) -> Outcome:
    """`get_batch_loss_metrics` of the trainers without a reference: CPO and ORPO."""
    policy = world.texts.policy.detach().requires_grad_()
    model = StandIn([(world.texts.input_ids, policy)])
    loss, metrics = trainer(of, settings, model, model).get_batch_loss_metrics(model, inputs_by_view(world))
    return _outcome(loss, policy, {name: [value] for name, value in metrics.items()})


def trl_odds_ratio(of: type[Any], settings: Mapping[str, Any], world: World) -> Outcome:
    """`ORPOTrainer.odds_ratio_loss`, without the supervised term, on the log-probabilities of its own forward pass."""
    policy = world.texts.policy.detach().requires_grad_()
    model = StandIn([(world.texts.input_ids, policy)])
    made = trainer(of, settings, model, model)
    chosen, rejected, *_ = made.concatenated_forward(model, inputs_by_view(world))
    return _outcome(-made.odds_ratio_loss(chosen, rejected)[0].mean(), policy, {})


def inputs_by_view(world: World) -> dict[str, Tensor]:
    """A batch as CPO and ORPO collate it."""
    texts, half = world.texts, world.num_pairs
    inputs: dict[str, Tensor] = {}
    for view, rows in (("chosen", slice(0, half)), ("rejected", slice(half, None))):
        inputs |= {f"{view}_input_ids": texts.input_ids[rows], f"{view}_attention_mask": texts.attention_mask[rows]}
        inputs[f"{view}_labels"] = texts.labels[rows]
    return inputs


def _outcome(loss: Tensor, policy: Tensor, metrics: Mapping[str, Sequence[float]]) -> Outcome:
    (gradient,) = torch.autograd.grad(loss, policy)
    rewards = {view: metrics[f"rewards/{view}"][-1] for view in ("chosen", "rejected") if metrics.get(f"rewards/{view}")}
    return Outcome(loss.detach().double(), gradient.double(), rewards)


# --- our side --------------------------------------------------------------------------------------------------------


def ours(node: Mapping[str, Any], world: World) -> Outcome:
    """A loss node on the same logits: the mean over the examples, as the host takes it."""
    objective = build_objective(node, batch_size=8)
    outputs = evaluated(objective, world.served, world.facts)
    loss = weighted_loss(outputs).mean()
    (gradient,) = torch.autograd.grad(loss, world.texts.policy, retain_graph=True)
    rewards: dict[str, float] = {}
    for output in outputs:
        rewards = {**{view: _present_mean(reward, view, world) for view, reward in output.output.rewards.items()}, **rewards}
    return Outcome(loss.detach(), gradient, rewards)


def _present_mean(reward: Tensor, view: str, world: World) -> float:
    present = world.facts[f"{view}_present"]
    return float((reward * present).sum() / present.sum())


def changed(node: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A composed loss with settings and statistics of these names replaced, in every term that has them; the card stays."""
    replaced: dict[str, Any] = {}
    for key, value in node.items():
        inner = isinstance(value, Mapping) and key != "card"
        replaced[key] = settings[key] if key in settings else changed(value, settings) if inner else value
    return replaced


def distance(found: Outcome, expected: Outcome) -> float:
    """The largest difference in loss and gradient, relative to values above 1."""
    pairs = [(found.loss, expected.loss), (found.gradient, expected.gradient)]
    return max(float((left - right).abs().max() / right.abs().max().clamp(min=1)) for left, right in pairs)
