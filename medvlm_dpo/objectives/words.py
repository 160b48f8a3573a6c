"""The sheet of a loss in words: labelled entries, which a terminal and a page lay out in their own ways."""

import importlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from medvlm_dpo.objectives.sheets import Setting, Sheet
from medvlm_dpo.vocab import BASES, FACTS

_WORK_OF_DPO = 3 * 2 + 2  # two answers with gradient, two by the reference
_PRESENCE = ("chosen_present", "rejected_present")  # said by the line on the answers an example must have
NO_CARD = "its yaml has no card"
NO_TITLE = "a function without a docstring"
UNREAD = "paper text not consulted"


class Entry(NamedTuple):
    """One labelled part of a description, line by line; a formula is laid out as code."""

    label: str
    lines: tuple[str, ...]
    is_formula: bool = False


def title_of(sheet: Sheet) -> str:
    """The title on the card; without one the first line of the function's docstring, or what a sum adds."""
    if sheet.card is not None:
        return sheet.card.title
    if sheet.terms:
        return f"the sum of {_list(term.name for term in sheet.terms)}"
    return sheet.docstring.partition("\n")[0] or NO_TITLE


def entries_of(sheet: Sheet) -> list[Entry]:
    """Everything a sheet says, in the order in which one wants to read it; empty parts are left out."""
    card = sheet.card
    formula = (card.formula,) if card and not sheet.is_changed else (sum_formula(sheet),) if sheet.terms else ()
    shipped = (f"by the command; the card below is of {sheet.name} as it ships: {card.formula}",) if card and sheet.is_changed else ()
    entries = [
        Entry("formula", tuple(" ".join(text.split()) for text in formula), is_formula=True),
        Entry("changed", tuple(" ".join(text.split()) for text in shipped)),
        Entry("in words", () if card else _paragraphs(sheet.docstring)),
        Entry("terms", tuple(_term_lines(sheet))),
        Entry("left out", tuple(f"{name}, whose weight is 0" for name in sheet.left_out)),
        Entry("source", (card.source, _evidence_words(card.evidence)) if card else (NO_CARD,)),
        Entry("needs", tuple(needs_lines(sheet))),
        Entry("settings", tuple(map(_setting_line, sheet.settings))),
    ]
    if card:
        entries += [
            Entry("deviations", card.deviations),
            Entry("see also", (sheet.see_also,) if sheet.see_also else ()),
            Entry("clamps", card.clamps),
            Entry("pitfalls", card.pitfalls),
            Entry("in training", (f"need not fall within a few steps: {card.need_not_fall}",) if card.need_not_fall else ()),
        ]
    return [entry for entry in entries if entry.lines]


def sum_formula(sheet: Sheet) -> str:
    """The weighted sum by the names of its terms, e.g. `1 x dpo + 0.5 x nll`."""
    return " + ".join(f"{term.weight:g} x {term.name}" for term in sheet.terms)


def cost_words(sheet: Sheet) -> str:
    """How many answers are scored for one example, by whom, and what several micro-batches add."""
    scored = sheet.needs["answers_scored"]
    words = (
        f"answers scored per example: {scored['policy_with_gradient']} with gradient, {scored['policy_without_gradient']} without, "
        f"{scored['reference']} by the reference"
    )
    again = sheet.needs["measured_first"]
    words += f"; {cost_text(sheet)} times the work of dpo, counting an answer with gradient as 3 and any other as 1"
    return words + (f"; with several micro-batches per step {len(again)} once more, without gradient ({_list(again)})" if again else "")


def cost_text(sheet: Sheet) -> str:
    """The work per example, a dpo's being 1: forward and backward pass with gradient count 3, a forward pass alone 1."""
    scored = sheet.needs["answers_scored"]
    return f"{(3 * scored['policy_with_gradient'] + scored['policy_without_gradient'] + scored['reference']) / _WORK_OF_DPO:.2g}"


def estimator_title(dotted_name: str) -> str:
    """The first line of an estimator's docstring; blank where it has none."""
    module, _, name = dotted_name.rpartition(".")
    return (getattr(importlib.import_module(module), name).__doc__ or "").partition("\n")[0]


def needs_lines(sheet: Sheet) -> list[str]:
    """What must be there and what is computed, one line each."""
    needs = sheet.needs
    lines = [f"policy, with gradient: {_list(needs['policy_with_gradient'])}"]
    if needs["policy_without_gradient"]:
        lines.append(f"policy, without gradient: {_list(needs['policy_without_gradient'])}")
    lines.append(f"reference={sheet.reference}: {_list(needs['reference'])}" if needs["reference"] else "no reference")
    if needs["reference_distributions"]:
        lines.append(f"the reference's whole distribution, from its hidden states: {_list(needs['reference_distributions'])}")
    if needs["corrupted_views"]:
        lines.append(f"a corrupted image, corruption={sheet.corruption}: {_list(needs['corrupted_views'])}")
    lines += [f"{base}: {BASES[base].meaning}" for base in needs["quantities"] if base != "logps"]
    lines += [f"{fact}: {FACTS[fact]}" for fact in needs["facts"] if fact not in _PRESENCE]
    lines += [_statistic_line(key, source) for key, source in needs["statistics"].items()]
    lines.append(_answers_line(needs["required_answers"]))
    return [*lines, cost_words(sheet)]


def _evidence_words(evidence: str) -> str:
    """On what the formula rests; where no paper was read for it, that too."""
    return f"evidence: {evidence}" + ("" if evidence == "paper" else f"; {UNREAD}")


def _statistic_line(key: str, source: str | float) -> str:
    name = key.rpartition("/")[2]
    return f"statistic {name}: {source}, over the global batch" if isinstance(source, str) else f"statistic {name}: fixed at {source:g}"


def _answers_line(required: Sequence[str]) -> str:
    return f"every example with a {' and a '.join(required)} answer" if required else "examples may lack one of their two answers"


def _term_lines(sheet: Sheet) -> list[str]:
    return [f"{term.weight:g} x {term.name}: {' '.join(term.formula.split())}{_brief(term.settings)}" for term in sheet.terms]


def _brief(settings: Sequence[Setting]) -> str:
    shown = [f"{setting.key} {setting.value}" for setting in settings if setting.value]
    return f" [{', '.join(shown)}]" if shown else ""


def _setting_line(setting: Setting) -> str:
    value = f" = {setting.value}" if setting.value else ""
    return f"{setting.key}{value}" + (f": {setting.words}" if setting.words else "")


def _paragraphs(docstring: str) -> tuple[str, ...]:
    """A docstring between its title and its sections, one line per paragraph; what it asks for and takes stands in the signature."""
    body = re.split(r"^(?:Args|Returns|Raises):", docstring.partition("\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return tuple(" ".join(part.split()) for part in body.split("\n\n") if part.strip())


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
