"""Our losses against TRL's own methods: 200 random batches each, loss and gradient with respect to the logits, in float64.

Rewards too, where TRL logs the scores that the loss compares. What is deliberately different stands in test_parity_trl_differences.
"""

import math
import re
import warnings
from collections.abc import Mapping
from functools import cache, partial
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loss_world import loss_node
from torch import Tensor
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.utils import add_fused_lm_head
from trl_cases import (
    CLOSE,
    CLOSE_FLOAT32,
    NUM_BATCHES,
    Case,
    Drawn,
    Settings,
    case,
    inline,
    listed,
    outcomes,
    pair,
    total,
    worst,
    worst_reward,
)
from trl_texts import VOCAB, Texts, World, pairs_of, random_answers, random_pairs, random_texts
from trl_world import changed, scored, trl_answers, trl_odds_ratio, trl_pairs, trl_policy_only

with warnings.catch_warnings():
    # TRL warns at import that what it keeps under `experimental` may change; its version is pinned here.
    warnings.simplefilter("ignore")
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer


# --- pairs: DPOTrainer -----------------------------------------------------------------------------------------------


def same_beta(loss_type: str, name: str, d: Drawn) -> Settings:
    """A loss with beta as its only setting."""
    return case(pair(loss_type, d.beta), name, {"beta": d.beta})


def flipped(loss_type: str, name: str, d: Drawn) -> Settings:
    """A loss with an assumed rate of flipped labels."""
    return case(pair(loss_type, d.beta, {"label_smoothing": d.flip_rate}), name, {"beta": d.beta, "flip_rate": d.flip_rate})


def diverging(divergence: str, name: str, d: Drawn) -> Settings:
    """DPO with another divergence."""
    return case(pair("sigmoid", d.beta, {"f_divergence_type": divergence}), name, {"beta": d.beta})


PAIRS: Mapping[str, Case] = {
    "sft_token_mean": lambda d: case(pair("sft", d.beta), "sft_token_mean", {}),
    "dpo": partial(same_beta, "sigmoid", "dpo"),
    "dpo_norm": partial(same_beta, "sigmoid_norm", "dpo_norm"),
    "ipo": partial(same_beta, "ipo", "ipo"),
    "hinge": partial(same_beta, "hinge", "hinge"),
    "apo_zero": partial(same_beta, "apo_zero", "apo_zero"),
    "apo_down": partial(same_beta, "apo_down", "apo_down"),
    "nca": partial(same_beta, "nca_pair", "nca"),
    "sppo_hard": partial(same_beta, "sppo_hard", "sppo_hard"),
    "aot": partial(same_beta, "aot", "aot"),
    "aot_unpaired": partial(same_beta, "aot_unpaired", "aot_unpaired"),
    "robust_dpo": partial(flipped, "robust", "robust_dpo"),
    "exo": partial(flipped, "exo_pair", "exo"),
    "f_dpo_js": partial(diverging, "js_divergence", "f_dpo_js"),
    "f_dpo_forward_kl": partial(diverging, "forward_kl", "f_dpo_forward_kl"),
    "bco_pair without a shift": lambda d: case(pair("bco_pair", d.beta), "bco_pair", {"beta": d.beta, "mean_logratio": 0.0}),
    "discopop": lambda d: case(pair("discopop", d.beta, {"discopop_tau": d.weight}), "discopop", {"beta": d.beta, "temperature": d.weight}),
    "ld_dpo": lambda d: case(pair("sigmoid", d.beta, {"ld_alpha": d.share}), "ld_dpo", {"beta": d.beta, "tail_weight": d.share}),
    "wpo without a clamp": lambda d: case(
        pair("sigmoid", d.beta, {"use_weighting": True}), "wpo", {"beta": d.beta, "max_weight": math.inf}
    ),
    "dpo and sft_token_mean": lambda d: (
        listed({"sigmoid": 1.0, "sft": d.weight}, d.beta),
        total({"dpo": (1.0, changed(loss_node("dpo"), {"beta": d.beta})), "sft": (d.weight, loss_node("sft_token_mean"))}),
    ),
    "mpo without a shift": lambda d: case(
        listed({"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}, d.beta), "mpo", {"beta": d.beta, "mean_logratio": 0.0}
    ),
}
# TRL logs beta times the summed log-ratio for every loss; ours are the scores that the loss compares.
OTHER_REWARDS: Mapping[str, str] = {
    "dpo_norm": "compares means over tokens",
    "ipo": "compares means over tokens",
    "f_dpo_js": "compares f' of the ratios",
    "f_dpo_forward_kl": "compares f' of the ratios",
}
NO_REWARDS = ("sft_token_mean",)  # compares nothing


@cache
def pair_worlds() -> tuple[World, ...]:
    """Batches of 1 to 8 pairs."""
    random = Random(1)
    return tuple(random_pairs(random, 1 + index % 8) for index in range(NUM_BATCHES))


@pytest.mark.parametrize("name", PAIRS)
def test_pair_loss_and_gradient_are_those_of_trl(name: str) -> None:
    both = outcomes(PAIRS[name], pair_worlds(), partial(trl_pairs, DPOTrainer))
    assert len(both) == NUM_BATCHES
    assert worst(both) < CLOSE
    if name in OTHER_REWARDS:
        assert worst_reward(both) > CLOSE_FLOAT32
    elif name not in NO_REWARDS:
        assert worst_reward(both) < CLOSE


def test_every_pair_loss_of_trl_is_compared() -> None:
    """TRL names its losses when it is asked for one that it does not have."""
    with pytest.raises(ValueError, match="Unknown loss type: none of them") as refusal:
        trl_pairs(DPOTrainer, pair("none of them", 0.1), pair_worlds()[0])
    offered = set(re.findall(r"'(\w+)'", str(refusal.value).partition("[")[2]))
    drawn_once = Drawn(0.1, 0.1, 0.5, 1.0)
    assert {loss for of in PAIRS.values() for loss in of(drawn_once)[0]["loss_types"]} == offered
    assert len(offered) == 15


def alpha(d: Drawn) -> Settings:
    beta, order = 0.2 * d.beta, 0.05 + 0.9 * d.share  # larger ones multiply TRL's rounding of the sums
    attributes = pair("sigmoid", beta, {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - order})
    return case(attributes, "f_dpo_alpha", {"beta": beta, "order": order})


def test_alpha_divergence_is_that_of_trl_whose_coefficient_is_1_less_our_order() -> None:
    """TRL's clamps stand in a table without float64, so its side runs in float32."""
    worlds = pair_worlds()
    with pytest.raises(KeyError, match="float64"):
        trl_pairs(DPOTrainer, alpha(Drawn(0.1, 0.1, 0.5, 1.0))[0], worlds[0])
    both = outcomes(alpha, worlds, partial(trl_pairs, DPOTrainer, dtype=torch.float32))
    assert worst(both) < CLOSE_FLOAT32
    assert worst_reward(both) > CLOSE_FLOAT32  # of f' again


# --- single answers: KTOTrainer --------------------------------------------------------------------------------------


def kto(loss_type: str, more: Mapping[str, Any], d: Drawn) -> Settings:
    weights = {"desirable_weight": d.weight, "undesirable_weight": 1.0 + d.share}
    attributes = {"loss_type": loss_type, "beta": d.beta, "calculate_KL": loss_type == "kto", **weights}
    return case(attributes, "kto", {"beta": d.beta, **weights, **more})


ANSWERS: Mapping[str, Case] = {
    "kto": partial(kto, "kto", {}),
    "apo_zero_unpaired, our kto at z0 = 0": partial(kto, "apo_zero_unpaired", {"unmatched_kl": 0.0}),
}


@cache
def answer_worlds() -> tuple[World, ...]:
    """Batches of 1 to 8 examples, all with one answer or all with both."""
    random = Random(3)
    sizes = [(1 + index // 2 % 8, index % 2 == 1) for index in range(NUM_BATCHES)]
    return tuple(random_answers(random, 0 if paired else size, size if paired else 0) for size, paired in sizes)


@pytest.mark.parametrize("name", ANSWERS)
def test_loss_and_gradient_of_single_answers_are_those_of_trl(name: str) -> None:
    both = outcomes(ANSWERS[name], answer_worlds(), partial(trl_answers, KTOTrainer))
    assert worst(both) < CLOSE
    assert worst_reward(both) < CLOSE


# --- without a reference: CPO and ORPO -------------------------------------------------------------------------------


def simpo(name: str, supervised: float, d: Drawn) -> Settings:
    beta, ratio = 10 * d.beta, d.weight
    attributes = {"loss_type": "simpo", "beta": beta, "simpo_gamma": ratio * beta, "cpo_alpha": supervised}
    return case(attributes, name, {"beta": beta, "gamma_beta_ratio": ratio})


def policy_hinge(d: Drawn) -> Settings:
    """A margin in nats is the inverse of TRL's beta, up to a factor: max(0, margin - x) is margin times max(0, 1 - x / margin)."""
    margin = 1 + 10 * d.share
    hinge = inline("reference_free.policy_hinge", {"margin": margin})
    sums = total({"hinge": (1 / margin, hinge), "sft": (d.weight, loss_node("sft_token_mean"))})
    return {"loss_type": "hinge", "beta": 1 / margin, "cpo_alpha": d.weight}, sums


POLICY_ONLY: Mapping[str, Case] = {
    "simpo": partial(simpo, "simpo", 0),
    "cpo_simpo": partial(simpo, "cpo_simpo", 0.05),
    "cpo": lambda d: case({"loss_type": "sigmoid", "beta": d.beta, "cpo_alpha": 1.0}, "cpo", {"beta": d.beta}),
    "policy_hinge": policy_hinge,
}


@pytest.mark.parametrize("name", POLICY_ONLY)
def test_loss_and_gradient_without_reference_are_those_of_trl(name: str) -> None:
    both = outcomes(POLICY_ONLY[name], pair_worlds(), partial(trl_policy_only, CPOTrainer))
    assert worst(both) < CLOSE
    if name == "policy_hinge":  # rewards in nats, as its margin
        assert worst_reward(both) > CLOSE_FLOAT32
    else:
        assert worst_reward(both) < CLOSE


def test_the_odds_ratio_is_that_of_trl() -> None:
    """TRL computes it in float32."""
    both = outcomes(
        lambda d: ({"beta": d.weight}, total({"odds_ratio": (d.weight, inline("reference_free.odds_ratio", {}))})),
        pair_worlds(),
        partial(trl_odds_ratio, ORPOTrainer),
    )
    assert worst(both) < CLOSE_FLOAT32


def without_prompt(texts: Texts) -> World:
    """Pairs of answers after a single token; the first token of a text is never predicted."""
    width = int(texts.answers.max()) + 1
    policy = texts.policy.detach()[:, :width].requires_grad_()
    return pairs_of(Texts(texts.input_ids[:, :width], torch.ones_like(texts.prompts), texts.answers, policy, texts.reference[:, :width]))


def test_orpo_is_that_of_trl_for_one_pair_without_a_prompt() -> None:
    def orpo(d: Drawn) -> Settings:
        node = loss_node("orpo")
        return {"beta": d.weight}, {**node, "weights": {**node["weights"], "odds_ratio": d.weight}}

    worlds = [without_prompt(random_texts(Random(seed), 2)) for seed in range(NUM_BATCHES)]
    assert worst(outcomes(orpo, worlds, partial(trl_policy_only, ORPOTrainer))) < CLOSE_FLOAT32


# --- the stand-in ----------------------------------------------------------------------------------------------------


class Headed(torch.nn.Module):
    """The least that TRL's fused head wants of a language model; its hidden states are the logits."""

    config = SimpleNamespace(get_text_config=SimpleNamespace)

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.head = torch.nn.Linear(VOCAB, VOCAB, bias=False)
        self.head.weight.data.copy_(torch.eye(VOCAB))

    def base_model(self, *, input_ids: Tensor, use_cache: bool) -> Any:
        assert input_ids.shape == self.logits.shape[:-1]
        assert not use_cache
        return SimpleNamespace(last_hidden_state=self.logits)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, *, input_ids: Tensor) -> Any:
        raise NotImplementedError(input_ids)


def test_the_stand_in_scores_as_the_fused_head_of_trl() -> None:
    """In float32, in which the fused head accumulates."""
    for seed in range(20):
        texts = random_texts(Random(seed), 4)
        logits = texts.policy.detach().float().requires_grad_()
        model: Any = Headed(logits)
        add_fused_lm_head(model, outputs=("log_probs", "log_sum_sq_probs"))
        fused, own = model(input_ids=texts.input_ids, labels=texts.labels, fused_lm_head=True), scored(logits, texts.labels)
        for name in ("log_probs", "log_sum_sq_probs"):
            torch.testing.assert_close(getattr(own, name), getattr(fused, name), rtol=0, atol=1e-5)
        outputs: list[Any] = [own, fused]
        found, expected = (torch.autograd.grad(output.log_probs.square().sum(), logits)[0] for output in outputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
