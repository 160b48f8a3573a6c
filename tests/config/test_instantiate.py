"""Objects from nodes, and the check of names and types that comes before."""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from medvlm_dpo.config.instantiate import call_target, check_targets, fits, locate
from medvlm_dpo.errors import InputError

TARGETS = """
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Part:
    size: int
    label: str | None = None


class Factory:
    @classmethod
    def make(cls, width: float):
        return cls, width


def whole(part, parts, names, *, ratio: float):
    return part, parts, names, ratio


def read(file: Path, folder: Path | None, either: str | Path):
    return file, folder, either


def open_ended(**settings):
    return settings


constant = 3
"""


@pytest.fixture(autouse=True)
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "node_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "node_targets", raising=False)


def part(**settings: object) -> dict[str, object]:
    return {"_target_": "node_targets.Part", **settings}


def test_nested_nodes_are_built_wherever_they_stand() -> None:
    node = {
        "_target_": "node_targets.whole",
        "part": part(size=1),
        "parts": [part(size=2), 7],
        "names": {"one": part(size=3, label="three"), "plain": "word"},
        "ratio": 0.5,
    }
    first, several, named, ratio = call_target(node)
    assert (first.size, several[0].size, several[1], named["one"].label, named["plain"], ratio) == (1, 2, 7, "three", "word", 0.5)


def test_partial_leaves_the_rest_to_the_code() -> None:
    bound = call_target({"_target_": "node_targets.whole", "_partial_": True, "ratio": 2.0})
    assert isinstance(bound, functools.partial)
    assert bound(1, 2, 3) == (1, 2, 3, 2.0)


def test_shared_settings_never_reach_the_target() -> None:
    node = part(_shared_=["path"], path="/somewhere", size=4)
    assert call_target(node).size == 4
    assert check_targets({"x": node}) == []


def test_a_target_that_asks_for_a_path_gets_one() -> None:
    node = {"_target_": "node_targets.read", "file": "a/b", "folder": None, "either": "c"}
    assert call_target(node) == (Path("a/b"), None, "c")
    assert check_targets({"x": {**node, "file": 3}}) == ["x.file: read expects a path, got 3"]


def test_methods_of_classes_are_targets() -> None:
    made, width = call_target({"_target_": "node_targets.Factory.make", "width": 3})
    assert (made.__name__, width) == ("Factory", 3)


def test_all_problems_at_once_each_with_the_nearest_name() -> None:
    config = {
        "a": part(siz=1),
        "b": {"deep": [part(size="big", label=4)]},
        "c": {"_target_": "node_targets.Partt"},
        "d": {"_target_": "no_such_module.thing"},
        "e": {"_target_": "node_targets.constant"},
        "f": {"_target_": "node_targets.open_ended", "anything": 1},
        "g": part(size=1, _shared_=["nothing"]),
        "h": part(size=True),
        "left_out": part(nonsense=1),
        "plain": {"size": "no target, no opinion"},
    }
    assert check_targets(config, ignore=("left_out",)) == [
        "a.siz: Part takes no 'siz'; did you mean size?",
        "a.size is missing: Part needs it",
        "b.deep[0].size: Part expects a whole number, got 'big'",
        "b.deep[0].label: Part expects text or null, got 4",
        "c._target_: node_targets has no 'Partt'; did you mean Part?",
        "d._target_: no_such_module.thing does not exist: there is no module no_such_module; "
        "give the full dotted name of a class or function",
        "e._target_: node_targets.constant is no class or function",
        "f: open_ended takes open-ended arguments (*args or **kwargs), which cannot be checked; name every setting in its signature",
        "g._shared_: there is no key 'nothing' here",
        "h.size: Part expects a whole number, got True",
    ]


def test_partial_node_may_miss_arguments_but_not_misname_them() -> None:
    node = {"_target_": "node_targets.whole", "_partial_": True, "ration": 1.0}
    assert check_targets({"loss": node}) == ["loss.ration: whole takes no 'ration'; did you mean ratio?"]


def test_what_the_code_serves_is_neither_asked_for_nor_offered() -> None:
    config = {"told": part(label="x"), "other": {"nested": part(siz=1)}}
    assert check_targets(config, served=("size",)) == [
        "other.nested.siz: Part takes no 'siz'; did you mean size?",
        "other.nested.size is missing: Part needs it",
    ]
    assert check_targets({"told": part(size=1)}, served=("size",)) == ["told.size: Part takes no 'size'; choose from label"]


def test_import_error_inside_a_target_is_not_called_a_misspelt_name(tmp_path: Path) -> None:
    (tmp_path / "needs_more.py").write_text("import a_library_nobody_has\n")
    with pytest.raises(ModuleNotFoundError, match="a_library_nobody_has"):
        locate("needs_more.thing")


def test_calling_an_unknown_target_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match="did you mean Part"):
        call_target({"_target_": "node_targets.Prt"})


@dataclass
class Richer:
    """A type yaml values are not compared with."""


@pytest.mark.parametrize(
    ("value", "hint", "fitting"),
    [
        (1, float, True),
        (1.5, int, False),
        (True, float, False),
        (True, bool, True),
        (1, bool, False),
        (None, int | None, True),
        ("a", int | None, False),
        ("auto", int | str, True),
        ("x", Richer, True),
        ([1], list[int], True),
        (None, str, False),
    ],
)
def test_fits(value: object, hint: object, fitting: bool) -> None:
    assert fits(value, hint) is fitting
