"""Golden numbers of the five losses, and mutants of their code that must all miss them.

Every number is derived by hand from sums of log-probabilities (policy S, reference R) and lengths n, chosen first:
set A: S -10 / -12, R -11 / -11.5, n 5 / 6;      log-ratios of sums a = 1, b = -.5, of means .2 and -1/12
set B: S -9.7 / -12.4, R -11 / -11.6, n 5 / 8;   a = 1.3, b = -.8, of means .26 and -.1
set C: S -11.2 / -11.7, R -10 / -10.2, n 5 / 7;  a = -1.2, b = -1.5 (the policy is worse than the reference on both)
three pairs: S -10 -8 -15 / -12 -9 -14, R -11 -7.5 -15.6 / -11.5 -9.2 -13, n 5 4 8 / 6 5 7; a = 1, -.5, .6, b = -.5, .2, -1
with softplus(x) = log(1 + exp(x)) and s(x) = 1 / (1 + exp(-x)). Sets A and B alone leave blind spots: A has equal mean log-probabilities.
"""

import ast
import copy
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from medvlm_dpo.objectives.demand import bind_objective
from medvlm_dpo.objectives.terms import Objective, Term, weighted_loss

CONF = Path(__file__).parents[2] / "conf" / "loss"
MODULES = ("contrastive", "kto", "simpo", "supervised", "statistics")
BETA = 0.1


@dataclass(frozen=True)
class Pairs:
    """Sums and lengths of a batch."""

    policy_chosen: Sequence[float]
    policy_rejected: Sequence[float]
    reference_chosen: Sequence[float]
    reference_rejected: Sequence[float]
    chosen_lengths: Sequence[float]
    rejected_lengths: Sequence[float]

    def served(self) -> dict[str, Tensor]:
        """Every sum and mean by its name."""
        tensors: dict[str, Tensor] = {}
        for model in ("policy", "reference"):
            for answer in ("chosen", "rejected"):
                total = column(getattr(self, f"{model}_{answer}"))
                tensors[f"{model}_{answer}_logps"] = total
                tensors[f"{model}_{answer}_mean_logps"] = total / column(getattr(self, f"{answer}_lengths"))
        return tensors


def column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


A = Pairs([-10], [-12], [-11], [-11.5], [5], [6])
B = Pairs([-9.7], [-12.4], [-11], [-11.6], [5], [8])
C = Pairs([-11.2], [-11.7], [-10], [-10.2], [5], [7])
THREE = Pairs([-10, -8, -15], [-12, -9, -14], [-11, -7.5, -15.6], [-11.5, -9.2, -13], [5, 4, 8], [6, 5, 7])
# An estimate of 0.1: the mean of -.2, .6 and -.1; the other way round its mean is negative and the clamp gives 0.
UNMATCHED = {"detached_policy_unmatched_logps": [-30.2, -25.0, -28.4], "reference_unmatched_logps": [-30.0, -25.6, -28.3]}
NEGATIVE = {"detached_policy_unmatched_logps": [-30.0, -25.6, -28.3], "reference_unmatched_logps": [-30.2, -25.0, -28.4]}


@dataclass(frozen=True)
class Golden:
    """One row: a loss file with some settings changed, the pairs, and what must come out."""

    loss: str
    pairs: Pairs
    expected: Sequence[float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, Sequence[float]] = field(default_factory=dict)
    unmatched: Mapping[str, Sequence[float]] = field(default_factory=dict)
    present: tuple[float, float] = (1, 1)


def kto(pairs: Pairs, expected: Sequence[float], z0: float | None, present: tuple[float, float] = (1, 1), **more: Any) -> Golden:
    settings = {} if z0 is None else {"unmatched_kl": z0}
    return Golden("kto", pairs, expected, {**settings, **more.pop("settings", {})}, present=present, **more)


GOLDENS = {
    # -S/n: 10/5, 9.7/5; over the three pairs 2, 2, 15/8 (mean 1.958333)
    "sft A": Golden("sft", A, [2.0]),
    "sft B": Golden("sft", B, [1.94]),
    "sft three": Golden("sft", THREE, [2.0, 2.0, 1.875]),
    # softplus(-.1 (a - b)): margins 1.5, 2.1, .3 and 1.5, -.7, 1.6 (mean loss .655353); rewards .1 a and .1 b
    "dpo A": Golden("dpo", A, [0.620957], rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "dpo B": Golden("dpo", B, [0.593650], rewards={"chosen": [0.13], "rejected": [-0.08]}),
    "dpo C": Golden("dpo", C, [0.678260], rewards={"chosen": [-0.12], "rejected": [-0.15]}),
    "dpo three": Golden("dpo", THREE, [0.620957, 0.728760, 0.616344]),
    # (mean-log-ratio margin - 5)^2: .2 + .083333 = .283333; .26 + .1 = .36; -.24 + .214286 = -.025714;
    # -.125 - .04 = -.165; .075 + .142857 = .217857
    "ipo A": Golden("ipo", A, [22.246944], rewards={"chosen": [0.02], "rejected": [-0.1 / 12]}),
    "ipo B": Golden("ipo", B, [21.529600], rewards={"chosen": [0.026], "rejected": [-0.01]}),
    "ipo C": Golden("ipo", C, [25.257804], rewards={"chosen": [-0.024], "rejected": [-0.15 / 7]}),
    "ipo three": Golden("ipo", THREE, [22.246944, 26.677225, 22.868890]),
    # one answer: 1 - s(.1 (a - z0)) or 1 - s(.1 (z0 - b)); a pair: the average of its two
    "kto desirable A": kto(A, [0.475021], 0.0, (1, 0)),
    "kto undesirable A": kto(A, [0.487503], 0.0, (0, 1)),
    "kto desirable A, z0 .4": kto(A, [0.485004], 0.4, (1, 0)),
    "kto undesirable A, z0 .4": kto(A, [0.477515], 0.4, (0, 1)),
    "kto desirable B": kto(B, [0.467546], 0.0, (1, 0)),
    "kto undesirable B": kto(B, [0.480011], 0.0, (0, 1)),
    "kto desirable B, z0 .4": kto(B, [0.477515], 0.4, (1, 0)),
    "kto undesirable B, z0 .4": kto(B, [0.470036], 0.4, (0, 1)),
    "kto pair A": kto(A, [(0.475021 + 0.487503) / 2], 0.0, rewards={"chosen": [0.1], "rejected": [-0.05]}),
    "kto desirable C, weight 1.2": kto(C, [0.643424], 0.25, (1, 0), settings={"desirable_weight": 1.2, "undesirable_weight": 0.8}),
    "kto undesirable C, weight .8": kto(C, [0.365089], 0.25, (0, 1), settings={"desirable_weight": 1.2, "undesirable_weight": 0.8}),
    # z0 = .1 from the unmatched answers; the mean over the six answers is .490008
    "kto three, estimated": kto(THREE, [0.481260, 0.508748, 0.480015], None, unmatched=UNMATCHED),
    # a negative average counts as 0: averages of 1 - s(.1 a) and 1 - s(-.1 b): .475021 .487503, .512497 .505000, .485004 .475021
    "kto three, clamped": kto(THREE, [0.481262, 0.508749, 0.480013], None, unmatched=NEGATIVE),
    # softplus(-(beta (mean margin - ratio))): A 2(0 - .5) = -1; B 2(-.39 - .5)= -1.78 with -1.94 + 1.55 = -.39;
    # C -2.24 + 1.671429 = -.568571, 2(-1.068571); three pairs 0, -.2, .125. Ratio 5 at beta .1 is an absolute gamma of .5
    "simpo A": Golden("simpo", A, [1.313262], rewards={"chosen": [-4.0], "rejected": [-4.0]}),
    "simpo B": Golden("simpo", B, [1.935839], rewards={"chosen": [-3.88], "rejected": [-3.1]}),
    "simpo C": Golden("simpo", C, [2.248677]),
    "simpo A, beta .1": Golden("simpo", A, [0.974077], {"beta": BETA, "gamma_beta_ratio": 5.0}),
    "simpo B, beta .1": Golden("simpo", B, [0.998531], {"beta": BETA, "gamma_beta_ratio": 5.0}),
    "simpo three": Golden("simpo", THREE, [1.313262, 1.620417, 1.136871]),
}


def compute(golden: Golden, replaced: Mapping[str, str]) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The loss of a row through its yaml, with modules replaced by mutants."""
    text = (CONF / f"{golden.loss}.yaml").read_text(encoding="utf-8")
    for module, mutant in replaced.items():
        text = text.replace(f"{module}.", f"{mutant}.")
    node: dict[str, Any] = {**yaml.safe_load(text), **golden.settings}
    module, _, name = node["_target_"].rpartition(".")
    bound, problems = bind_objective(vars(importlib.import_module(module))[name], node)
    assert problems == []
    objective = Objective((Term(name, 1.0, bound),), is_sum=False)
    num_examples = len(golden.expected)
    facts = {
        f"{answer}_present": torch.full((num_examples,), value)
        for answer, value in zip(("chosen", "rejected"), golden.present, strict=True)
    }
    statistics, _ = objective.estimate({name: column(values) for name, values in golden.unmatched.items()}, facts, {})
    outputs = objective.evaluate(golden.pairs.served(), facts, statistics, torch.arange(num_examples))
    return weighted_loss(outputs), outputs[0].output.rewards


def misses(golden: Golden, replaced: Mapping[str, str]) -> str | None:
    """How a row is missed, or None where loss and rewards come out within 1e-6."""
    loss, rewards = compute(golden, replaced)
    if loss.shape != (len(golden.expected),) or not torch.allclose(loss, column(golden.expected), rtol=0, atol=1e-6):
        return f"loss {loss.tolist()}, expected {golden.expected}"
    for view, expected in golden.rewards.items():
        if not torch.allclose(rewards[view], column(expected), rtol=0, atol=1e-9):
            return f"{view} reward {rewards[view].tolist()}, expected {expected}"
    return None


@pytest.mark.parametrize("golden", GOLDENS.values(), ids=GOLDENS.keys())
def test_golden_number(golden: Golden) -> None:
    assert misses(golden, {}) is None


@pytest.mark.parametrize(
    ("loss", "expected"), [("sft", 1.958333), ("dpo", 0.655353), ("ipo", 23.931020), ("kto", 0.490008), ("simpo", 1.356850)]
)
def test_plain_mean_over_the_batch_of_three(loss: str, expected: float) -> None:
    """The host's reduction: the plain mean over examples, for KTO equal to the mean over the six answers."""
    value, _ = compute(Golden(loss, THREE, [0, 0, 0], unmatched=UNMATCHED), {})
    assert value.mean().item() == pytest.approx(expected, abs=1e-6)


def test_estimators() -> None:
    """z0: mean of -.2, .6, -.1; mirrored -.1, clamped. Lengths 5, 4, 8."""
    statistics = importlib.import_module("medvlm_dpo.objectives.statistics")
    assert statistics.unmatched_kl(*map(column, UNMATCHED.values())).item() == pytest.approx(0.1, abs=1e-9)
    assert statistics.unmatched_kl(*map(column, NEGATIVE.values())).item() == 0
    assert statistics.mean_chosen_length(column([5, 4, 8])).item() == pytest.approx(17 / 3)


# --- mutants ----------------------------------------------------------------------------------------------------------


# The same function, not a mistake: (x - y) ** 2 is (y - x) ** 2.
EQUIVALENT = "operands swapped in `chosen_ratio - rejected_ratio - 1 / (2 * beta)`"


def mistakes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a small mistake would make of one node."""
    match node:
        case ast.BinOp():
            yield from arithmetic_mistakes(node)
        case ast.UnaryOp(op=ast.USub()):
            yield "sign dropped", node.operand
        case ast.Call():
            yield from call_mistakes(node)
        case ast.Constant(value=int() | float() as number):
            yield "number one higher", ast.Constant(number + 1)
        case ast.Name(id=name) if other_answer(name) != name:
            yield f"{name} became {other_answer(name)}", ast.Name(other_answer(name), ast.Load())
        case _:
            pass


def arithmetic_mistakes(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    match node.op:
        case ast.Add():
            yield "plus became minus", ast.BinOp(node.left, ast.Sub(), node.right)
        case ast.Sub():
            yield "minus became plus", ast.BinOp(node.left, ast.Add(), node.right)
            yield "operands swapped", ast.BinOp(node.right, ast.Sub(), node.left)
        case _:
            yield "right operand dropped", node.left
            yield "left operand dropped", node.right


def call_mistakes(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    match node.func:
        case ast.Attribute(attr="clamp", value=receiver):
            yield "clamp dropped", receiver
        case ast.Attribute(attr="mean", value=receiver):
            yield "mean became sum", ast.Call(ast.Attribute(receiver, "sum", ast.Load()), [], [])
        case ast.Name(id="logsigmoid" | "sigmoid"):
            yield "argument negated", ast.Call(node.func, [ast.UnaryOp(ast.USub(), node.args[0])], [])
        case _:
            pass


def other_answer(name: str) -> str:
    swap = {"chosen": "rejected", "rejected": "chosen", "undesirable": "desirable", "desirable": "undesirable"}
    return re.sub("undesirable|desirable|chosen|rejected", lambda found: swap[found[0]], name)


def mutants(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Descriptions and sources of a function with one mistake each."""
    tree = ast.parse(inspect.getsource(function))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.body = [statement for statement in definition.body[1:] if "refuse(" not in ast.unparse(statement)]
    for index, node in enumerate(ast.walk(tree)):
        if isinstance(node, ast.expr) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            for what, replacement in mistakes(node):
                changed = copy.deepcopy(tree)
                target = list(ast.walk(changed))[index]
                yield (
                    f"{function.__name__}, line {node.lineno}: {what} in `{ast.unparse(node)}`",
                    ast.unparse(Swap(target, replacement).visit(changed)),
                )
    source = ast.unparse(tree)
    arguments = [argument.arg for argument in definition.args.args if argument.arg.endswith("logps")]
    for name in arguments:
        yield f"{function.__name__}: sum and mean swapped in {name}", re.sub(rf"\b{name}\b", swapped_reduction(name), source)
    everywhere = re.sub(r"\b\w+_logps\b", lambda found: swapped_reduction(found[0]), source)
    if everywhere != source:
        yield f"{function.__name__}: sum and mean swapped everywhere", everywhere


def swapped_reduction(name: str) -> str:
    return name.replace("_mean_logps", "_logps") if "_mean_logps" in name else name.replace("_logps", "_mean_logps")


class Swap(ast.NodeTransformer):
    def __init__(self, target: ast.AST, replacement: ast.AST) -> None:
        self.target, self.replacement = target, copy.deepcopy(replacement)

    def visit(self, node: ast.AST) -> ast.AST:
        return self.replacement if node is self.target else self.generic_visit(node)


def survives(module: ModuleType, source: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether every golden row still comes out with this function in the place of the module's own."""
    mutant = ModuleType("mutant_of_a_loss")
    vars(mutant).update({key: value for key, value in vars(module).items() if not key.startswith("__")})
    try:
        exec(compile(ast.parse(source), "mutant", "exec"), vars(mutant))
    except NameError:  # an annotation names what is not there
        return False
    monkeypatch.setitem(sys.modules, mutant.__name__, mutant)
    for golden in GOLDENS.values():
        try:
            if misses(golden, {module.__name__: mutant.__name__}) is not None:
                return False
        except Exception:  # it does not even run, e.g. a name that nobody serves; the control below watches the harness itself
            return False
    return True


def own_functions(module: ModuleType) -> list[Callable[..., Any]]:
    return [value for value in vars(module).values() if inspect.isfunction(value) and value.__module__ == module.__name__]


@pytest.mark.parametrize("name", MODULES)
def test_every_mutant_misses_a_golden_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flipped signs, a dropped beta, sums for means, a dropped clamp, ...: the numbers above notice each of them."""
    module = importlib.import_module(f"medvlm_dpo.objectives.{name}")
    functions = [function for function in own_functions(module) if function.__name__ != "mean_chosen_length"]  # used by no loss yet
    tried = [(what, source) for function in functions for what, source in mutants(function) if EQUIVALENT not in what]
    assert len(tried) >= 3
    survivors = [f"{what}\n{source}" for what, source in tried if survives(module, source, monkeypatch)]
    assert not survivors, f"{len(survivors)} of {len(tried)} mutants survive:\n" + "\n".join(survivors)


def test_the_unchanged_functions_survive_the_mutation_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without it a broken harness would kill every mutant."""
    for name in MODULES:
        module = importlib.import_module(f"medvlm_dpo.objectives.{name}")
        for function in own_functions(module):
            assert survives(module, inspect.getsource(function), monkeypatch), function.__name__
