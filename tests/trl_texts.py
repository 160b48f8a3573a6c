"""Random texts with the logits of two models, and our own path from them to the tensors of an objective."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random

import torch
from torch import Tensor

from medvlm_dpo.logps import collision_logps, label_logps, log_probs, served_tensors
from medvlm_dpo.vocab import TENSOR_NAMES, Batch, Rows

VOCAB = 6
IGNORED = -100


def as_they_are(hidden: Tensor) -> Tensor:
    """A head for hidden states that are the logits."""
    return hidden


@dataclass(frozen=True)
class Texts:
    """Rows of prompt, answer and right padding, with the logits both models give them.

    Args:
        input_ids: [row, column].
        prompts: [row], tokens before the answer, at least one.
        answers: [row], tokens of the answer, at least one.
        policy: [row, column, vocab], logits, a leaf with gradient.
        reference: the same without gradient.
    """

    input_ids: Tensor
    prompts: Tensor
    answers: Tensor
    policy: Tensor
    reference: Tensor

    @cached_property
    def _columns(self) -> Tensor:
        return torch.arange(self.input_ids.shape[1])

    @cached_property
    def attention_mask(self) -> Tensor:
        return (self._columns < (self.prompts + self.answers)[:, None]).long()

    @cached_property
    def completion_mask(self) -> Tensor:
        return self.attention_mask * (self._columns >= self.prompts[:, None]).long()

    @cached_property
    def labels(self) -> Tensor:
        return self.input_ids.masked_fill(self.completion_mask == 0, IGNORED)

    def picked(self, rows: Tensor) -> "Texts":
        """Some of the rows, some perhaps repeatedly."""
        policy = self.policy.detach()[rows].requires_grad_()
        return Texts(self.input_ids[rows], self.prompts[rows], self.answers[rows], policy, self.reference[rows])

    def values(self, logits: Tensor) -> dict[str, Tensor]:
        """Our values per response token, by base; the places are counted from the lengths, no mask and no shift is involved."""
        predictors = torch.cat(
            [torch.arange(int(start) - 1, int(start + count) - 1) for start, count in zip(self.prompts, self.answers, strict=True)]
        )
        rows = torch.repeat_interleave(torch.arange(len(self.answers)), self.answers)
        distribution = log_probs(logits[rows, predictors], as_they_are)
        return {"logps": label_logps(distribution, self.input_ids[rows, predictors + 1]), "collision_logps": collision_logps(distribution)}

    def served(self, answers_of: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors by name. `answers_of` says by view which row holds the answer of an example, -1 for none."""
        index = torch.repeat_interleave(torch.arange(len(self.answers)), self.answers)
        none = torch.zeros(0, dtype=torch.long)
        rows = Rows(
            self.input_ids, self.attention_mask.bool(), torch.zeros(1, 3, 1, 1), none, index, index, index, index, len(self.answers)
        )
        batch = Batch(rows, answers_of, {}, (), none)
        names = [name for name in TENSOR_NAMES.values() if name.view in answers_of and name.base in ("logps", "collision_logps")]
        return served_tensors(names, batch, {"policy": self.values(self.policy), "reference": self.values(self.reference)})


def random_texts(random: Random, num_rows: int, *, spread: float | None = None) -> Texts:
    """Prompts of 1 to 4 tokens, answers of 1 to 9, up to 2 columns of padding for all; the reference lies near the policy.

    Args:
        random: where every number comes from.
        num_rows: how many.
        spread: standard deviation of the logits and, halved, of the reference's distance; drawn if not given.
    """
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    prompts = torch.randint(1, 5, (num_rows,), generator=generator)
    answers = torch.randint(1, 10, (num_rows,), generator=generator)
    shape = (num_rows, int((prompts + answers).max()) + random.randrange(3))
    spread = random.choice([0.05, 0.5, 1.5]) if spread is None else spread
    policy = spread * torch.randn((*shape, VOCAB), generator=generator, dtype=torch.float64)
    moved = policy + 0.5 * spread * torch.randn(policy.shape, generator=generator, dtype=torch.float64)
    return Texts(torch.randint(0, VOCAB, shape, generator=generator), prompts, answers, policy.requires_grad_(), moved.detach())


@dataclass(frozen=True)
class World:
    """One batch: what TRL's loss is given, and what ours is.

    Args:
        texts: every answer; of pairs the chosen ones come first.
        served: our tensors by name.
        facts: our facts by name.
        unmatched: for KTO, every prompt with an answer that is not its own.
        desirable: for KTO, by row of `texts`.
    """

    texts: Texts
    served: Mapping[str, Tensor]
    facts: Mapping[str, Tensor]
    unmatched: Texts | None = None
    desirable: Tensor | None = None

    @property
    def num_pairs(self) -> int:
        return len(self.texts.answers) // 2


def random_pairs(random: Random, num_pairs: int, *, spread: float | None = None) -> World:
    """Pairs, chosen answers first."""
    return pairs_of(random_texts(random, 2 * num_pairs, spread=spread))


def pairs_of(texts: Texts) -> World:
    """A world of pairs, chosen answers first."""
    first = torch.arange(len(texts.answers) // 2)
    views = {"chosen": first, "rejected": first + len(first)}
    lengths = {f"{view}_lengths": texts.answers[rows] for view, rows in views.items()}
    present = {f"{view}_present": torch.ones(len(first)) for view in views}
    return World(texts, texts.served(views), lengths | present)


def random_answers(random: Random, num_singles: int, num_pairs: int = 0) -> World:
    """For KTO: examples with one answer each, desirable or not, then examples with both. TRL sees the answers one by one."""
    num_examples, num_rows = num_singles + num_pairs, num_singles + 2 * num_pairs
    good = torch.tensor([random.random() < 0.6 for _ in range(num_singles)] + [True] * num_pairs)
    rows = torch.arange(num_examples)
    second = torch.cat([torch.full((num_singles,), -1), torch.arange(num_examples, num_rows)])
    views = {"chosen": torch.where(good, rows, -1), "rejected": torch.where(good, second, rows)}
    texts, unmatched = random_texts(random, num_rows), random_texts(random, num_examples)
    served = {**texts.served(views), **unmatched.served({"unmatched": rows})}
    present = {f"{view}_present": (answers >= 0).double() for view, answers in views.items()}
    # each answer of TRL brings an unmatched one along: that of its example
    examples = torch.cat([rows, torch.arange(num_singles, num_examples)])
    return World(texts, served, present, unmatched.picked(examples), torch.cat([good, torch.zeros(num_pairs, dtype=torch.bool)]))
