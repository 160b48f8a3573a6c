"""Where our losses are not TRL's on purpose: each difference is asserted, with its reason, and where it vanishes the losses are equal."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from random import Random
from typing import Any

import pytest
import torch
from loss_world import loss_node
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl_cases import CLOSE, NUM_BATCHES, case, listed, outcomes, pair, worst
from trl_texts import VOCAB, Texts, World, pairs_of, random_answers, random_pairs
from trl_world import Outcome, changed, distance, ours, trl_answers, trl_pairs, trl_policy_only

with warnings.catch_warnings():
    # TRL warns at import that what it keeps under `experimental` may change; its version is pinned here.
    warnings.simplefilter("ignore")
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

Trl = Callable[[World], Outcome]


@cache
def pairs_in(num_pairs: int, num_batches: int) -> tuple[World, ...]:
    return tuple(random_pairs(Random(seed), num_pairs, spread=1.0) for seed in range(num_batches))


def distances(node: Mapping[str, Any], trl: Trl, worlds: Sequence[World]) -> list[float]:
    return [distance(ours(node, world), trl(world)) for world in worlds]


def test_trl_ignores_label_smoothing_in_its_sigmoid_loss_and_our_cdpo_does_not() -> None:
    trl = partial(trl_pairs, DPOTrainer, pair("sigmoid", 0.5, {"label_smoothing": 0.2}))
    assert max(distances(changed(loss_node("dpo"), {"beta": 0.5}), trl, pairs_in(5, 10))) < CLOSE
    assert min(distances(changed(loss_node("cdpo"), {"beta": 0.5, "flip_rate": 0.2}), trl, pairs_in(5, 10))) > 1e-3


def test_cdpo_is_the_smoothed_sorted_loss_of_trl_on_one_pair() -> None:
    """Sorting one pair changes nothing, and TRL's sorted loss does read label_smoothing."""
    both = outcomes(
        lambda d: case(pair("aot", d.beta, {"label_smoothing": d.flip_rate}), "cdpo", {"beta": d.beta, "flip_rate": d.flip_rate}),
        pairs_in(1, NUM_BATCHES),
        partial(trl_pairs, DPOTrainer),
    )
    assert worst(both) < CLOSE


def test_the_shift_of_bco_pair_and_mpo_is_ours_alone() -> None:
    """TRL 1.16 dropped the running mean of the rewards."""
    pair_loss, sum_of_three = pair("bco_pair", 0.5), listed({"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}, 0.5)
    for name, attributes in (("bco_pair", pair_loss), ("mpo", sum_of_three)):
        found = distances(changed(loss_node(name), {"beta": 0.5}), partial(trl_pairs, DPOTrainer, attributes), pairs_in(5, 10))
        assert min(found) > 1e-5, name


def shifted(world: World, boost: float) -> World:
    """The same pairs with the policy's logits of the right next tokens raised or lowered."""
    texts = world.texts
    following = torch.nn.functional.one_hot(texts.input_ids.roll(-1, dims=1), VOCAB).double()
    policy = (texts.policy.detach() + boost * following).requires_grad_()
    return pairs_of(Texts(texts.input_ids, texts.prompts, texts.answers, policy, texts.reference))


def test_the_weights_of_wpo_stop_at_1_and_those_of_trl_do_not() -> None:
    """TRL dropped the clamp. Answers likelier than the average draw weigh more than 1; for unlikelier ones both losses are the same."""
    node = changed(loss_node("wpo"), {"beta": 0.1})
    trl = partial(trl_pairs, DPOTrainer, pair("sigmoid", 0.1, {"use_weighting": True}))
    assert min(distances(node, trl, [shifted(world, 3.0) for world in pairs_in(5, 10)])) > 1e-3
    assert max(distances(node, trl, [shifted(world, -3.0) for world in pairs_in(5, 10)])) < CLOSE


@pytest.mark.parametrize(
    ("name", "weights", "beta"),
    [("sft", {"sft": 1.0}, 0.1), ("dpo_nll", {"sigmoid": 1.0, "sft": 1.0}, 0.1), ("rpo", {"sigmoid": 1.0, "sft": 0.005}, 0.01)],
)
def test_our_supervised_term_is_a_mean_per_answer_and_that_of_trl_per_token(name: str, weights: Mapping[str, float], beta: float) -> None:
    """The same for one pair; among several the short answers weigh more in ours. `sft_token_mean` is TRL's."""
    trl = partial(trl_pairs, DPOTrainer, listed(weights, beta))
    assert max(distances(loss_node(name), trl, pairs_in(1, NUM_BATCHES))) < CLOSE
    assert min(distances(loss_node(name), trl, pairs_in(5, 10))) > 1e-3 * weights["sft"]


def test_the_supervised_term_of_orpo_leaves_the_prompt_out() -> None:
    """TRL's is over prompt and answer; only the first token of a text is never predicted."""
    trl = partial(trl_policy_only, ORPOTrainer, {"beta": 0.1})
    worlds = [world for world in pairs_in(1, 20) if int(world.texts.prompts[0]) > 1]
    assert len(worlds) > 10
    assert min(distances(loss_node("orpo"), trl, worlds)) > 1e-3


def test_the_two_answers_of_an_example_share_its_weight_in_kto_and_are_two_examples_in_trl() -> None:
    """Where all examples have both answers, or all have one, the averages are the same, that of z0 too; in a mixture they are not."""
    attributes = {"loss_type": "kto", "beta": 0.1}
    node = loss_node("kto")
    mixed = [random_answers(Random(seed), 3, 2) for seed in range(10)]
    assert min(distances(node, partial(trl_answers, KTOTrainer, attributes), mixed)) > 1e-3
