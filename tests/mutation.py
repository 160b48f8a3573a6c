"""Small mistakes in a function's code: flipped signs, a dropped beta, a sum for a mean, a detached tensor, the wrong image."""

import ast
import copy
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any


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
        case ast.Name(id=name):
            if other_answer(name) != name:
                yield f"{name} became {other_answer(name)}", ast.Name(other_answer(name), ast.Load())
            if name.startswith("policy_"):
                yield f"{name} detached", ast.Call(ast.Attribute(node, "detach", ast.Load()), [], [])
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
