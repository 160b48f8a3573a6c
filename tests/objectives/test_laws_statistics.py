"""Laws of the estimators: first steps of the golden batch, states over several steps derived by hand, order of the examples, refusals."""

import io
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_world import THREE, A, column, evaluated, loss_node
from torch import Tensor

from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.calls import Statistic
from medvlm_dpo.objectives.moments import FilteredGaps, filtered_gap_moments, mean_gap_moments
from medvlm_dpo.objectives.sorting import of_equal_rank
from medvlm_dpo.objectives.statistics import mean_chosen_length, mean_logratio, mean_pair_weight, pair_kl, unmatched_kl
from medvlm_dpo.objectives.terms import Objective, build_objective, problems_of, weighted_loss

ESTIMATED = ("alpha_dpo", "aot", "aot_unpaired", "bco", "bco_pair", "beta_dpo", "kto", "kto_pair")


def objective_of(loss: str, *overrides: str, batch_size: int = 3) -> Objective:
    return build_objective(loss_node(loss, *overrides), batch_size=batch_size)


def three_served() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The three pairs with draws that differ."""
    return THREE.served(), {**THREE.served_facts(), "uniform_draw": column([0.3, 0.8, 0.6])}


def estimated(loss: str, *overrides: str) -> Statistic:
    """The one statistic of a loss on the three pairs, first step."""
    tensors, facts = three_served()
    statistics, _ = objective_of(loss, *overrides).estimate(tensors, facts, {})
    (value,) = statistics.values()
    return value


def approx(*values: float) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


# --- first steps ------------------------------------------------------------------------------------------------------


def test_the_first_steps_of_the_golden_batch() -> None:
    """a = 1, -.5, .6; b = -.5, .2, -1; h = 1.5, -.7, 1.6; mean gaps 17/60, -.165, .217857."""
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(estimated("kto"), approx(0.1), **close)
    chosen_kl, rejected_kl = estimated("kto_pair")
    torch.testing.assert_close((chosen_kl, rejected_kl), (approx(0.366667), approx(0.0)), **close)
    torch.testing.assert_close(estimated("bco"), approx(-0.03333333), **close)  # times beta .1: -.003333
    torch.testing.assert_close(tuple(estimated("alpha_dpo")), (approx(0.011206), approx(0.024217)), **close)
    gaps = estimated("beta_dpo", "loss.gap.drop_fraction=0")
    assert isinstance(gaps, FilteredGaps)
    torch.testing.assert_close(tuple(gaps), (approx(0.08), approx(0.8), approx(1.0, 1.0, 1.0)), **close)
    assert 0.1 * (1 + 0.6 * float(gaps.kept_mean - gaps.mean)) == pytest.approx(0.143200, abs=1e-6)
    tensors, facts = three_served()
    _, states = objective_of("beta_dpo").estimate(tensors, facts, {})
    assert float(states["beta_dpo/gap"]["std"]) == pytest.approx(0.130, abs=1e-6)
    torch.testing.assert_close(estimated("aot"), approx(1.7, 0.5, -2.6), **close)
    torch.testing.assert_close(tuple(estimated("aot_unpaired")), (approx(0.2, -1.0, -0.5), approx(0.6, 1.0, -0.5)), **close)


@pytest.mark.parametrize(
    ("loss", "mean"),
    [
        ("aot", 0.654354),
        ("aot_unpaired", 0.654022),
        ("kto", 0.490008),
        ("kto_pair", 0.485432),
        ("bco", 0.673750),
        ("bco_pair", 1.347500),
        ("beta_dpo", 0.640387),
        ("alpha_dpo", 4.251818),
    ],
)
def test_the_mean_loss_of_the_golden_batch(loss: str, mean: float) -> None:
    overrides = {"alpha_dpo": (), "beta_dpo": ("loss.gap.drop_fraction=0",)}.get(loss, ("loss.beta=0.1",))
    output = weighted_loss(evaluated(objective_of(loss, *overrides), *three_served()))
    assert output.mean().item() == pytest.approx(mean, abs=1e-6)


def test_plain_means() -> None:
    assert mean_chosen_length(column([5.0, 4.0, 8.0])).item() == pytest.approx(17 / 3)
    assert mean_pair_weight(column([0.6, 0.0, 1.2])).item() == pytest.approx(0.6)


# --- states -----------------------------------------------------------------------------------------------------------


def logratios(
    chosen: list[float], rejected: list[float], present: tuple[list[int], list[int]], previous: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    zero = torch.zeros(len(chosen), dtype=torch.float64)
    return mean_logratio(column(chosen), column(rejected), zero, zero, column(present[0]), column(present[1]), previous)


def test_the_running_mean_of_bco_counts_every_answer_once() -> None:
    """Totals 1 of 4 answers; then 1 - 3 = -2 of 5; then -2 + 4 = 2 of 6: means 1/4, -2/5, 1/3."""
    value, state = logratios([1, -0.5], [-0.5, 1], ([1, 1], [1, 1]), {})
    assert value.item() == pytest.approx(1 / 4)
    value, state = logratios([7], [-3], ([0], [1]), state)
    assert value.item() == pytest.approx(-2 / 5)
    value, state = logratios([4], [9], ([1], [0]), state)
    assert value.item() == pytest.approx(1 / 3)
    assert {key: float(number) for key, number in state.items()} == {"total": pytest.approx(2), "count": 6}


def moments_after(gaps: list[list[float]], decay: float) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    """Mean and standard deviation after every step of given mean gaps."""
    state: dict[str, Tensor] = {}
    seen: list[tuple[float, float]] = []
    for values in gaps:
        zero = torch.zeros(len(values), dtype=torch.float64)
        moments, state = mean_gap_moments(column(values), zero, zero, zero, state, decay=decay)
        seen.append((float(moments.mean), float(moments.std)))
    return seen, state


def test_the_running_moments_of_alpha_dpo() -> None:
    """Batches (0, 2), (3, 3), (-1, 1): means 1, 3, 0, deviations sqrt(2), 0, sqrt(2). With decay .9 from 0: means .1, .09 + .3 = .39,
    .351; deviations .1414214, .1272792, .1145513 + .1414214 = .2559727."""
    seen, state = moments_after([[0, 2], [3, 3], [-1, 1]], 0.9)
    root = math.sqrt(2)
    assert seen[0] == pytest.approx((0.1, 0.1 * root))
    assert seen[1] == pytest.approx((0.39, 0.09 * root))
    assert seen[2] == pytest.approx((0.351, 0.181 * root))
    assert {key: float(number) for key, number in state.items()} == pytest.approx({"mean": 0.351, "std": 0.181 * root})


def test_the_lower_bound_of_the_spread_does_not_enter_the_state() -> None:
    seen, state = moments_after([[0, 0], [0, 0]], 0.9)
    assert seen == [(0, 1e-6)] * 2
    assert float(state["std"]) == 0
    assert moments_after([[0, 0], [0, 2]], 0.5)[0][1] == pytest.approx((0.5, 0.5 * math.sqrt(2)))


def filtered(
    gaps: list[float], previous: Mapping[str, Tensor], *, decay: float = 0.9, drop: float = 0.0, draw: list[float] | None = None
) -> tuple[FilteredGaps, dict[str, Tensor]]:
    zero = torch.zeros(len(gaps), dtype=torch.float64)
    draws = column(draw or [0.5] * len(gaps))
    return filtered_gap_moments(column(gaps), zero, zero, zero, draws, previous, decay=decay, drop_fraction=drop)


def test_the_running_moments_of_beta_dpo() -> None:
    """The same batches in sums; the mean of the kept pairs is the batch's own."""
    state: dict[str, Tensor] = {}
    for gaps, mean, kept in (([0, 2], 0.1, 1), ([3, 3], 0.39, 3), ([-1, 1], 0.351, 0)):
        value, state = filtered([float(gap) for gap in gaps], state)
        assert (float(value.mean), float(value.kept_mean)) == pytest.approx((mean, kept))
    assert float(state["std"]) == pytest.approx(0.181 * math.sqrt(2))


@pytest.mark.parametrize("loss", ["alpha_dpo", "bco", "bco_pair", "beta_dpo"])
def test_a_state_is_plain_numbers_and_survives_a_file(loss: str, tmp_path: Path) -> None:
    objective, (tensors, facts) = objective_of(loss), three_served()
    _, states = objective.estimate(tensors, facts, {})
    assert all(isinstance(number, Tensor) and number.shape == () for state in states.values() for number in state.values())
    assert [len(state) for state in states.values()] == [2]
    file = tmp_path / "state.pt"
    torch.save(states, file)
    restored = torch.load(io.BytesIO(file.read_bytes()), weights_only=True)
    values, after = objective.estimate(tensors, facts, states)
    values_restored, after_restored = objective.estimate(tensors, facts, restored)
    torch.testing.assert_close((values_restored, after_restored), (values, after), rtol=0, atol=0)
    assert all(not torch.equal(number, states[key][name]) for key, state in after.items() for name, number in state.items())


# --- filtering --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_pairs", "drop", "kept"), [(10, 0.2, 8), (10, 0.9, 1), (10, 0.3, 7), (3, 0.3, 2), (5, 0.0, 5), (4, 0.5, 2)])
def test_so_many_pairs_are_kept(num_pairs: int, drop: float, kept: int) -> None:
    generator = torch.Generator().manual_seed(num_pairs)
    gaps, draws = (torch.rand(num_pairs, generator=generator).double().tolist() for _ in range(2))
    value, _ = filtered(gaps, {}, drop=drop, draw=draws)
    assert int((value.keep_scale > 0).sum()) == kept
    assert value.keep_scale.mean().item() == pytest.approx(1)
    assert value.keep_scale.max().item() == pytest.approx(num_pairs / kept)
    assert value.kept_mean.item() == pytest.approx(float((value.keep_scale * column(gaps)).mean()))
    torch.testing.assert_close(filtered(gaps, {}, drop=drop, draw=draws)[0].keep_scale, value.keep_scale, rtol=0, atol=0)


def test_pairs_are_kept_as_often_as_their_weights_say() -> None:
    """Gaps 0, 1, 2: mean 1, deviation 1, weights exp(-1/2), 1, exp(-1/2). One of three kept: shares .274069, .451863, .274069.

    4,000 fixed draws, so the standard error is about .008.
    """
    counts = torch.zeros(3, dtype=torch.float64)
    for draw in torch.rand(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        counts += (filtered([0, 1, 2], {}, decay=0, drop=0.6, draw=draw.tolist())[0].keep_scale > 0).double()
    torch.testing.assert_close(counts / 4000, approx(0.274069, 0.451863, 0.274069), rtol=0, atol=0.025)


# --- sorting ----------------------------------------------------------------------------------------------------------

numbers = st.lists(st.floats(-20, 20), min_size=6, max_size=6)


@given(numbers, numbers)
def test_equal_ranks(left: list[float], right: list[float]) -> None:
    """To the sorted values belong the sorted others, whatever ties there are; ties keep the order of the batch."""
    values, others = column(left), column(right)
    partners = of_equal_rank(values, others)
    order = values.argsort(stable=True)
    torch.testing.assert_close(partners[order], others.sort().values, rtol=0, atol=0)


def test_ties_keep_the_order_of_the_batch() -> None:
    assert of_equal_rank(column([0.0] * 4), column([3.0, 1.0, 2.0, 0.0])).tolist() == [0, 1, 2, 3]


# --- the whole batch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("loss", ESTIMATED)
def test_the_order_of_the_examples_does_not_matter(loss: str, order: tuple[int, ...]) -> None:
    objective, places = objective_of(loss), torch.tensor(order)
    tensors, facts = three_served()
    straight = weighted_loss(evaluated(objective, tensors, facts))
    moved = weighted_loss(evaluated(objective, {n: t[places] for n, t in tensors.items()}, {n: t[places] for n, t in facts.items()}))
    torch.testing.assert_close(moved, straight[places], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", ESTIMATED)
def test_statistics_carry_no_gradient_and_are_float64(loss: str) -> None:
    tensors, facts = three_served()
    live = {name: value.float().requires_grad_(True) for name, value in tensors.items()}
    statistics, states = objective_of(loss).estimate(live, facts, {})
    parts = [part for value in statistics.values() for part in (value if isinstance(value, tuple) else (value,))]
    parts += [number for state in states.values() for number in state.values()]
    assert all(part.dtype == torch.float64 and not part.requires_grad for part in parts)


@given(numbers, numbers)
def test_the_estimates_of_kl_are_never_negative(left: list[float], right: list[float]) -> None:
    policy, reference = column(left), column(right)
    expected = max(0.0, float((policy - reference).mean()))
    assert unmatched_kl(policy, reference).item() == pytest.approx(expected, abs=1e-12)
    estimates = pair_kl(policy, reference, reference, policy)
    assert estimates.chosen.item() == pytest.approx(expected, abs=1e-12)
    assert estimates.rejected.item() == pytest.approx(max(0.0, float((reference - policy).mean())), abs=1e-12)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["alpha_dpo", "beta_dpo"])
def test_one_pair_has_no_spread(loss: str) -> None:
    assert problems_of(loss_node(loss, *(["loss.gap.drop_fraction=0"] if loss == "beta_dpo" else [])), batch_size=1) == [
        f"{loss} needs a global batch of at least 2 pairs, got 1"
    ]
    with pytest.raises(ValueError, match="needs a global batch of at least 2 pairs, got 1"):
        objective_of(loss).estimate(A.served(), {"uniform_draw": column([0.5])}, {})


def test_somebody_must_be_kept() -> None:
    assert problems_of(loss_node("beta_dpo", "loss.gap.drop_fraction=0.6"), batch_size=2) == [
        "loss.gap.drop_fraction 0.6 leaves none of the 2 pairs of a global batch; lower it or raise the batch size"
    ]


def test_ranges_of_the_moments_name_their_keys() -> None:
    assert problems_of(loss_node("beta_dpo", "loss.gap.drop_fraction=1", "loss.gap.decay=-0.5"), batch_size=4) == [
        "loss.gap.decay must be >= 0, got -0.5",
        "loss.gap.drop_fraction must be < 1, got 1",
    ]
    assert problems_of(loss_node("alpha_dpo", "loss.gap.decay=1.5"), batch_size=4) == ["loss.gap.decay must be < 1, got 1.5"]
    with pytest.raises(InputError, match="must be < 1"):
        moments_after([[0.0, 1.0]], 1.0)
