"""Shared settings of a sum of losses: whether anything refers to them can be seen only before references are resolved."""

import copy
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

OWN_KEYS = ("terms", "weights", "card")


def unread_shared_problems(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """One sentence for every shared setting of the loss that nothing refers to: changing it would change nothing.

    A setting counts as read when the configuration cannot be resolved without it, or when the command gave its readers values of their own.

    Args:
        config: the composed configuration, with its references, without Hydra's node.
        overrides: the command's.
    """
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, value=False)
    replaced = {item.partition("=")[0].rpartition(".")[2] for item in overrides if item.startswith("loss.terms.")}
    return [
        f"{'.'.join(path)} is read by no term; refer to it as ${{...{path[-1]}}} inside {'.'.join(path[:-1])}.terms, or remove it"
        for path in _shared(config.loss, ("loss",))
        if path[-1] not in replaced and _resolves_without(config, path)
    ]


def _shared(node: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The places of all shared settings, those of nested sums too."""
    if not isinstance(node, DictConfig) or "_target_" in node or not isinstance(node._get_node("terms"), DictConfig):
        return  # a function, or a node that is both and is refused as such
    yield from ((*path, str(key)) for key in node if key not in OWN_KEYS)
    for name in node.terms:
        yield from _shared(node.terms._get_node(name), (*path, "terms", str(name)))


def _resolves_without(config: DictConfig, path: tuple[str, ...]) -> bool:
    changed = copy.deepcopy(config)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    try:
        OmegaConf.to_container(changed, resolve=True)
    except OmegaConfBaseException:
        return False
    return True
