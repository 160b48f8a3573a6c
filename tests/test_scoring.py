"""Values per token: a naive computation on single sequences is the law; what needs no gradient gets none and costs no second pass."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from core_world import LORA, collated, encoded, make_backbone, make_pairs
from torch import Tensor

from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.data.encoding import EncodedExample
from medvlm_dpo.logps import served_tensors
from medvlm_dpo.reference import StartingReference
from medvlm_dpo.scoring import HIDDEN, REFERENCE, policy_values
from medvlm_dpo.vocab import TENSOR_NAMES, VIEWS, Batch, TensorName, views_scored_by

ALL = list(TENSOR_NAMES.values())
ANSWERS = ("chosen", "rejected", "unmatched")


class World:
    """An adapter away from its start, and a batch of three examples with every view."""

    def __init__(self, folder: Path) -> None:
        self.backbone = make_backbone(folder)
        self.backbone.module.double()
        self.backbone.add_adapter(LORA, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in self.backbone.trainable().values():
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
        self.examples = encoded(make_pairs(3), self.backbone)
        self.batch = self.collate(self.examples, VIEWS)

    def collate(self, examples: tuple[EncodedExample, ...], views: tuple[str, ...]) -> Batch:
        return collated(examples, views, lambda images: self.backbone.pictures(images).double())

    def served(self, names: list[TensorName], batch: Batch | None = None) -> dict[str, Tensor]:
        batch = batch if batch is not None else self.batch
        reference = StartingReference().values(self.backbone, batch, names) if views_scored_by(REFERENCE, names) else {}
        policy = policy_values(self.backbone, batch, names, reference)
        return served_tensors(names, batch, {"policy": policy, "reference": reference})


@pytest.fixture(scope="module")
def world(untrained_model: Path) -> World:
    return World(untrained_model)


def alone(world: World, example: EncodedExample, view: str, *, start: bool) -> tuple[list[int], Tensor]:
    """Labels and [token, vocab] log-probabilities of one sequence in a batch of its own."""
    batch = world.collate((example,), (view,))
    with torch.no_grad():
        if start:
            with world.backbone.adapter_disabled():
                logits = world.backbone.head(world.backbone.hidden_states(batch.rows))
        else:
            logits = world.backbone.head(world.backbone.hidden_states(batch.rows))
    return batch.rows.labels.tolist(), logits - logits.exp().sum(-1, keepdim=True).log()


def naive(world: World, example: EncodedExample, name: TensorName) -> list[float]:
    """The definition of every base, token by token, with the probabilities written out."""
    start = name.model == "reference"
    labels, own = alone(world, example, name.view, start=start)
    values: list[float] = []
    for place, label in enumerate(labels):
        p = own[place].exp()
        match name.base:
            case "logps":
                value = own[place, label]
            case "collision_logps":
                value = (p * p).sum().log()
            case "top_wrong_logps":
                value = max(own[place, token] for token in range(len(p)) if token != label)
            case "hallucinated_logps":
                value = own[place, int(alone(world, example, f"{name.view}_corrupt", start=start)[1][place].argmax())]
            case "image_kl":
                other = alone(world, example, f"{name.view}_corrupt", start=start)[1][place]
                value = (p * (own[place] - other)).sum()
            case _:
                q = alone(world, example, name.view, start=True)[1][place]
                value = (q.exp() * (q - own[place])).sum()
        values.append(float(value))
    return values


@pytest.mark.parametrize("base", sorted({name.base for name in ALL}))
def test_every_tensor_of_the_grammar_equals_its_definition(world: World, base: str) -> None:
    names = [name for name in ALL if name.base == base]
    served = world.served(names)
    for row, example in enumerate(world.examples):
        for name in (name for name in names if name.reduction == "token_"):
            expected = torch.tensor(naive(world, example, name), dtype=torch.float64)
            tokens = served[str(name)][row]
            torch.testing.assert_close(tokens[: len(expected)], expected, rtol=1e-9, atol=1e-11)
            assert not tokens[len(expected) :].any(), "padding is exactly 0"
            total = str(name._replace(reduction=""))
            torch.testing.assert_close(served[total][row], expected.sum(), rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(served[total.replace(base, f"mean_{base}")][row], expected.mean(), rtol=1e-9, atol=1e-11)


def test_all_tensors_together_are_those_asked_for_alone(world: World) -> None:
    together = world.served(ALL)
    for name in ALL[::7]:
        torch.testing.assert_close(together[str(name)], world.served([name])[str(name)], rtol=1e-9, atol=1e-11)


def test_exactly_the_policy_tensors_carry_gradient(world: World) -> None:
    served = world.served(ALL)
    assert {name for name, value in served.items() if value.requires_grad} == {str(name) for name in ALL if name.model == "policy"}


def numeric(world: World, weight: Tensor, place: int, read: Callable[[], float], step: float = 1e-4) -> float:
    with torch.no_grad():
        flat = weight.view(-1)
        flat[place] += step
        above = read()
        flat[place] -= 2 * step
        below = read()
        flat[place] += step
    return (above - below) / (2 * step)


def test_the_corrupted_side_of_the_image_kl_carries_no_gradient(world: World) -> None:
    """KL(p, q) with q frozen: its gradient is that of sum p (log p - log q) with the q of the moment as a constant."""
    name = TENSOR_NAMES["policy_chosen_image_kl"]
    weights = list(world.backbone.trainable().values())
    gradients = torch.autograd.grad(world.served([name])[str(name)].sum(), weights)
    weight, gradient = max(zip(weights, gradients, strict=True), key=lambda pair: float(pair[1].abs().max()))
    corrupt = [alone(world, example, "chosen_corrupt", start=False)[1] for example in world.examples]

    def frozen() -> float:
        total = 0.0
        for example, other in zip(world.examples, corrupt, strict=True):
            own = alone(world, example, "chosen", start=False)[1]
            total += float((own.exp() * (own - other)).sum())
        return total

    place = int(gradient.abs().argmax())
    # The model's norms run in float32 whatever its weights are, so a small step would measure their rounding.
    assert numeric(world, weight, place, frozen) == pytest.approx(float(gradient.flatten()[place]), rel=5e-3)


@pytest.mark.parametrize("live", [("chosen", "rejected"), ("unmatched",), ("rejected",), ANSWERS])
def test_values_equal_one_pass_and_idle_views_carry_no_gradient(world: World, live: tuple[str, ...]) -> None:
    batch = world.collate(world.examples, ANSWERS)
    all_live = [TENSOR_NAMES[f"policy_{view}_logps"] for view in ANSWERS]
    mixed = [TENSOR_NAMES[f"{'policy' if view in live else 'detached_policy'}_{view}_logps"] for view in ANSWERS]
    whole, split = world.served(all_live, batch), world.served(mixed, batch)
    weight = next(iter(world.backbone.trainable().values()))
    for own, name in zip(all_live, mixed, strict=True):
        torch.testing.assert_close(split[str(name)], whole[str(own)], rtol=1e-12, atol=1e-12)
        if name.model == "policy":
            (expected,) = torch.autograd.grad(whole[str(own)].sum(), [weight], retain_graph=True)
            (gradient,) = torch.autograd.grad(split[str(name)].sum(), [weight], retain_graph=True)
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
        else:
            assert not split[str(name)].requires_grad


@pytest.mark.parametrize(
    ("asked", "passes"),
    [
        (["policy_chosen_logps", "policy_rejected_logps"], 1),
        (["policy_chosen_logps", "policy_rejected_logps", "detached_policy_chosen_mean_collision_logps"], 1),
        (["policy_chosen_logps", "detached_policy_unmatched_logps"], 2),
        (["policy_chosen_logps", "policy_chosen_corrupt_logps"], 1),
        (["policy_chosen_image_kl"], 2),
        (["policy_chosen_logps", "reference_chosen_logps", "reference_rejected_logps"], 2),
        (["policy_chosen_forward_kl", "reference_chosen_logps"], 2),
        (["policy_chosen_hallucinated_logps", "reference_chosen_hallucinated_logps"], 3),
    ],
)
def test_number_of_passes(world: World, monkeypatch: pytest.MonkeyPatch, asked: list[str], passes: int) -> None:
    """One call of the policy with gradient, at most one without, at most one of the reference."""
    calls: list[int] = []
    original = LlavaBackbone.hidden_states

    def counted(self: LlavaBackbone, rows: object) -> Tensor:
        calls.append(1)
        return original(self, rows)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(LlavaBackbone, "hidden_states", counted)
    names = [TENSOR_NAMES[name] for name in asked]
    reference = StartingReference().values(world.backbone, world.batch, names) if views_scored_by(REFERENCE, names) else {}
    policy_values(world.backbone, world.batch, names, reference)
    assert len(calls) == passes


def test_forward_kl_is_exactly_0_where_policy_and_reference_are_one_model(untrained_model: Path) -> None:
    backbone = make_backbone(untrained_model)
    backbone.add_adapter(LORA, seed=0)
    batch = collated(encoded(make_pairs(2), backbone), ("chosen", "rejected"), backbone.pictures)
    names = [TENSOR_NAMES["policy_chosen_token_forward_kl"], TENSOR_NAMES["policy_rejected_forward_kl"]]
    reference = StartingReference().values(backbone, batch, names)
    assert reference.keys() == {HIDDEN}
    served = served_tensors(names, batch, {"policy": policy_values(backbone, batch, names, reference)})
    assert not any(value.any() for value in served.values())


def test_forward_kl_without_a_reference_is_a_mistake_of_the_host(world: World) -> None:
    with pytest.raises(ValueError, match="forward_kl was asked for without the reference's hidden states"):
        policy_values(world.backbone, world.batch, [TENSOR_NAMES["policy_chosen_forward_kl"]])


def test_views_of_bases_that_read_another_distribution() -> None:
    def views(name: str) -> tuple[set[str], set[str]]:
        policy, reference = (views_scored_by(model, [TENSOR_NAMES[name]]) for model in ("policy", REFERENCE))
        return set(policy), set(reference)

    assert views("policy_chosen_image_kl") == ({"chosen", "chosen_corrupt"}, set())
    assert views("reference_rejected_mean_hallucinated_logps") == (set(), {"rejected", "rejected_corrupt"})
    assert views("detached_policy_chosen_forward_kl") == ({"chosen"}, {"chosen"})
    assert views("policy_chosen_token_logps") == ({"chosen"}, set())
