"""Small mistakes in a function's code, and whether the golden numbers notice them.

Flipped signs, a dropped beta, a sum for a mean, a dropped clamp, a detached tensor, the true image in the place of the corrupted one.
"""

import ast
import copy
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

from loss_world import PACKAGE, Golden, golden_rows, loss_node, misses, modules_of, own_functions, rows, targets_of

MUTANT = "mutant_of_a_loss"


def survivors_of(name: str) -> tuple[int, list[str]]:
    """How many mutants a file of objectives/ has, and those that every golden row accepts."""
    module = importlib.import_module(f"{PACKAGE}.{name}")
    tried = [(what, source) for function in own_functions(module) for what, source in mutants(function)]
    tried = [(what, source) for what, source in tried if not any(part in what for part in rows()[1])]
    return len(tried), [f"{what}\n{source}" for what, source in tried if survives(module, source)]


def survives(module: ModuleType, source: str) -> bool:
    """Whether every golden row still comes out with this function in the place of the module's own."""
    changed = ast.parse(source).body[0]
    assert isinstance(changed, ast.FunctionDef)
    mutant = ModuleType(MUTANT)
    vars(mutant).update({key: value for key, value in vars(module).items() if not key.startswith("__")})
    others = [function for function in own_functions(module) if function.__name__ != changed.name]
    try:
        for tree in [*(ast.parse(inspect.getsource(function)) for function in others), ast.parse(source)]:  # helpers call the mutant too
            exec(compile(tree, "mutant", "exec"), vars(mutant))
    except NameError:  # an annotation names what is not there
        return False
    sys.modules[MUTANT] = mutant
    try:
        return all(_accepts(golden, module.__name__) for golden in _rows_of(module.__name__, changed.name))
    finally:
        del sys.modules[MUTANT]


def _accepts(golden: Golden, module: str) -> bool:
    try:
        return misses(golden, {module: MUTANT}) is None
    except Exception:  # it does not even run, e.g. a name that nobody serves; a control watches the harness itself
        return False


@cache
def _rows_of(module: str, function: str) -> list[Golden]:
    """The rows of the losses that use a module, those that name the function first: they notice soonest."""
    nodes = [(golden, loss_node(golden.loss, *golden.overrides)) for golden in golden_rows().values()]
    used = [(golden, node) for golden, node in nodes if module in modules_of(node)]
    return [golden for golden, _ in sorted(used, key=lambda pair: function not in targets_of(pair[1]))]


def mutants(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Descriptions and sources of a function with one mistake each; its docstring and its checks of ranges are left out."""
    tree = ast.parse(inspect.getsource(function))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.body = [statement for statement in definition.body[1:] if "refuse(" not in ast.unparse(statement)]
    body = {id(node) for statement in definition.body for node in ast.walk(statement)}
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in body and isinstance(node, ast.expr) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            for what, replacement in mistakes(node):
                changed = copy.deepcopy(tree)
                target = list(ast.walk(changed))[index]
                yield (
                    f"{function.__name__}, line {node.lineno}: {what} in `{ast.unparse(node)}`",
                    ast.unparse(Swap(target, replacement).visit(changed)),
                )
    yield from _renamed(definition, ast.unparse(tree))


def _renamed(definition: ast.FunctionDef, source: str) -> Iterator[tuple[str, str]]:
    """Another tensor asked for in the place of one: sum for mean, the true image for the corrupted one."""
    names = [argument.arg for argument in definition.args.args if re.match("policy_|detached_|reference_", argument.arg)]
    for name in names:
        for what, other in (("sum and mean swapped", swapped_reduction(name)), ("corrupted view removed", name.replace("_corrupt", ""))):
            if other != name and other not in names:
                yield f"{definition.name}: {what} in {name}", re.sub(rf"\b{name}\b", other, source)
    corrupt = [name for name in names if "_corrupt" in name]
    if corrupt:
        changed = source.replace("_corrupt_", "_") if _distinct(names) else _aliased(source, corrupt)
        yield f"{definition.name}: no corrupted view anywhere", changed
    everywhere = re.sub(r"\b(?:policy|detached_policy|reference)_\w+\b", lambda found: swapped_reduction(found[0]), source)
    if everywhere != source:
        yield f"{definition.name}: sum and mean swapped everywhere", everywhere


def _distinct(names: list[str]) -> bool:
    """Whether the names stay different when every corrupted view becomes the clean one."""
    return len({name.replace("_corrupt", "") for name in names}) == len(names)


def _aliased(source: str, corrupt: list[str]) -> str:
    """The body reads the clean view wherever it should read the corrupted one, as an overridden method once did."""
    start = source.index("ObjectiveOutput:") + len("ObjectiveOutput:")
    body = source[start:]
    for name in corrupt:
        body = re.sub(rf"\b{name}\b", name.replace("_corrupt", ""), body)
    return source[:start] + body


def mistakes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a small mistake would make of one node."""
    match node:
        case ast.BinOp():
            yield from arithmetic_mistakes(node)
        case ast.UnaryOp(op=ast.USub()):
            yield "sign dropped", node.operand
        case ast.Call():
            yield from call_mistakes(node)
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as number):
            yield "number one higher", ast.Constant(number + 1)
        case ast.Name():
            yield from name_mistakes(node)
        case _:
            pass


def name_mistakes(node: ast.Name) -> Iterator[tuple[str, ast.AST]]:
    if other_answer(node.id) != node.id:
        yield f"{node.id} became {other_answer(node.id)}", ast.Name(other_answer(node.id), ast.Load())
    if node.id.startswith("policy_"):
        yield f"{node.id} detached", ast.Call(ast.Attribute(node, "detach", ast.Load()), [], [])


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
            yield "mean became sum", ast.Call(ast.Attribute(receiver, "sum", ast.Load()), node.args, node.keywords)
        case ast.Attribute(attr="sum", value=receiver):
            yield "sum became mean", ast.Call(ast.Attribute(receiver, "mean", ast.Load()), node.args, node.keywords)
        case ast.Name(id="logsigmoid" | "sigmoid" | "softplus" | "relu" | "exp" | "expm1"):
            yield "argument negated", ast.Call(node.func, [ast.UnaryOp(ast.USub(), node.args[0]), *node.args[1:]], node.keywords)
        case _:
            pass


def other_answer(name: str) -> str:
    """`rejected` for `chosen`, `undesirable` for `desirable`, and the other way round."""
    swap = {"chosen": "rejected", "rejected": "chosen", "undesirable": "desirable", "desirable": "undesirable"}
    return re.sub("undesirable|desirable|chosen|rejected", lambda found: swap[found[0]], name)


def swapped_reduction(name: str) -> str:
    """The mean in place of the sum and the other way round; values per token stay."""
    if "_token_" in name:
        return name
    if "_mean_" in name:
        return name.replace("_mean_", "_")
    return re.sub(r"_(logps|collision_logps|top_wrong_logps|hallucinated_logps|image_kl|forward_kl)$", r"_mean_\1", name)


class Swap(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, target: ast.AST, replacement: ast.AST) -> None:
        self.target, self.replacement = target, copy.deepcopy(replacement)

    def visit(self, node: ast.AST) -> ast.AST:
        return self.replacement if node is self.target else self.generic_visit(node)
