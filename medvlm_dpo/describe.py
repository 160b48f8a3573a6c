"""Losses in words: for a terminal (`task=describe`), and as a page (`python -m medvlm_dpo.describe docs/objectives.md`)."""

import argparse
import importlib
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from medvlm_dpo.config.catalogue import catalogue
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import write_bytes_atomic
from medvlm_dpo.objectives.sheets import SUMS, Sheet, sheet_of
from medvlm_dpo.objectives.words import Entry, entries_of, sum_formula, title_of

NARROWEST = 60
LABEL_WIDTH = 13
BATCH_SIZE = 8  # nothing on the page depends on it
COLUMNS = ("loss", "formula", "rejected", "reference", "corrupted image", "statistics", "pair weights", "scored per example")


def describe(configs: Sequence[dict[str, Any]], *, width: int) -> str:
    """The loss of every configuration in words, each once.

    Args:
        configs: composed configurations; of each `loss`, `choices` and the trainer's `batch_size` are read.
        width: columns of the text, at least 60.

    Raises:
        InputError: a width too small, or losses that cannot be built, with all their problems.
    """
    if width < NARROWEST:
        raise InputError(f"task.settings.width: expects at least {NARROWEST} columns, got {width}")
    texts: dict[str, None] = {}
    problems: dict[str, None] = {}
    for config in configs:
        choices = config["choices"]
        try:
            sheet = sheet_of(
                str(choices["loss"]),
                config["loss"],
                corruption=str(choices["corruption"]),
                reference=str(choices["reference"]),
                batch_size=config["trainer"]["batch_size"],
            )
        except InputError as error:
            problems |= dict.fromkeys(error.problems)
        else:
            texts[_as_text(sheet, width)] = None
    if problems:
        raise InputError(problems)
    return "\n\n".join(texts)


def _as_text(sheet: Sheet, width: int) -> str:
    heading = textwrap.wrap(f"{sheet.name}: {title_of(sheet)}", width)
    lines = [*heading, "-" * max(map(len, heading))]
    for entry in entries_of(sheet):
        for number, line in enumerate(entry.lines):
            label = entry.label if number == 0 else ""
            lines += textwrap.wrap(
                line,
                width,
                initial_indent=label.ljust(LABEL_WIDTH),
                subsequent_indent=" " * (LABEL_WIDTH + 2),
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


# --- the page ----------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Objectives

Every loss of the catalogue: its formula, where that comes from, what it needs and what it costs. This page is made from `conf/loss/` by
`make docs`; please edit the card in the yaml of a loss, not this page. `python run.py task=describe loss=mdpo` prints one of them, with
the values of your own command.

## How to read a formula

Every formula is the loss of one example, in nats; training takes the plain mean over the examples of an optimiser step.

| sign | meaning |
|---|---|
| `S_w`, `S_l` | log-probability of the chosen (won) and the rejected (lost) answer under the policy, summed over response tokens |
| `R_w`, `R_l` | the same under the reference |
| `a`, `b` | log-ratios policy minus reference: `a = S_w - R_w`, `b = S_l - R_l` |
| `h` | their margin, `h = a - b` |
| `c` | log-ratio of the chosen answer on the corrupted image |
| `n_w`, `n_l` | response tokens of the two answers, end-of-sequence included |
| `s_t`, `r_t` | log-probability of token t of an answer under the policy and under the reference |
| `K_w`, `K_l` | KL(reference to policy), summed over the tokens of the two answers; in `kto_pair` another estimate, said there |
| `LS(x)` | log sigmoid of x |
| `stopgrad x` | the value of x, through which no gradient flows |

A card says on what its formula rests:

* `paper` ({paper} losses): it is quoted from the paper itself.
* `official code` ({official}): it was read in a repository of the paper's authors. The card names repository, file, lines or function,
  and commit; where a line range is said to be "at HEAD", the commit was not recorded.
* `derived` ({derived}): neither gives it as it stands. Code of others that has the same form (TRL, HALOs, LLaMA-Factory and the like) is
  named in the source as "the form of", and is no official code.

Without `paper` the text of the paper was not consulted. Defaults "of TRL's paper index" are the papers' settings as TRL lists them.

## How to choose

What you have decides more than the name. Of the losses below

{choices}

The table in the next section says the same of every loss. Losses whose rewards differ in kind are compared by what all of them report
alike (`preference_accuracy`, `preference_gain` with its margin, the change of each answer's log-probability), never by their rewards.
Read the pitfalls of a loss before you use it, and tune the learning rate for each: one rate does not fit all.

## What a loss costs

The last column counts the answers scored for one example: *with gradient + without gradient + by the reference*. An answer with gradient
is a forward and a backward pass of the model, the others a forward pass. An answer that several terms ask for is scored once, and a
corrupted image is made only when a loss asks for an answer on it. Two costs are not in the count: losses marked `*` measure a statistic
of the policy, and when a step has several micro-batches (`trainer.micro_batch_size`), that measurement is a pass of its own; losses with
a KL divergence to the reference (`forward_kl`) compute the reference's whole distribution over the vocabulary.

## Sums of losses

A yaml with `terms` and `weights` is a sum. A term is a loss of this page or a function of its own, sums nest, and settings that stand
beside `terms` can be shared:

```yaml
# my_conf/loss/anchored.yaml
defaults: [dpo@terms.dpo, anchor@terms.anchor, sft@terms.sft, _self_]
beta: 0.1
weights: {{dpo: 1.0, anchor: 0.5, sft: 0.2}}
terms:
  dpo: {{beta: "${{...beta}}"}}
  anchor: {{beta: "${{...beta}}"}}
```

`loss.beta=0.3` then reaches every term that refers to it, `loss.terms.dpo.beta=0.3` only one, and `loss.weights.sft=0` removes a term
with everything only it needs. A building block joins a loss on the command line:

```
python run.py loss=mdpo +loss@loss.terms.perception=perception +loss.weights.perception=0.01
```

An example has one corrupted image, so a sum has one corruption: the one its own yaml or the command chooses. Of two nested losses that each
bring one, the last named decides; say it in the sum's yaml (`override /corruption@_global_.corruption: blur`) or with `corruption=blur`.

## How to add one

One function and one yaml: [CONTRIBUTING.md](../CONTRIBUTING.md#add-a-loss-one-function-and-one-yaml).
"""

USES: tuple[tuple[str, Callable[[Sheet], bool]], ...] = (
    ("accept examples without a rejected answer", lambda sheet: "rejected" not in sheet.needs["required_answers"]),
    ("accept examples without a chosen answer", lambda sheet: "chosen" not in sheet.needs["required_answers"]),
    ("need no reference", lambda sheet: not sheet.needs["reference"]),
    ("look at the answer on a corrupted image", lambda sheet: bool(sheet.needs["corrupted_views"])),
    ("need a weight of every pair in the data", lambda sheet: "pair_weight" in sheet.needs["facts"]),
    ("need the reference's whole distribution", lambda sheet: bool(sheet.needs["reference_distributions"])),
)


def page() -> str:
    """The whole page as markdown: introduction, a table of all losses, and every loss by family.

    Raises:
        InputError: with the problems of every loss that cannot be built.
    """
    sheets = _catalogue_sheets()
    evidence = Counter(sheet.card.evidence for sheet in sheets if sheet.card)
    introduction = INTRODUCTION.format(
        paper=evidence["paper"],
        official=evidence["official code"],
        derived=evidence["derived"],
        choices="\n".join(_choices(sheets)),
    )
    parts = [introduction, "## All losses\n", *_overview(sheets)]
    by_family = sorted(sheets, key=lambda sheet: (sheet.family == SUMS, sheet.family, sheet.name))
    for family, members in groupby(by_family, key=lambda sheet: sheet.family):
        parts += [f"\n## Family {family}\n", _family_words(family)]
        parts += [line for sheet in members for line in _markdown(sheet)]
    return "\n".join(parts) + "\n"


def _catalogue_sheets() -> list[Sheet]:
    sheets: list[Sheet] = []
    problems: list[str] = []
    for name, loss in catalogue().items():
        try:
            sheets.append(sheet_of(name, loss.node, corruption=loss.corruption, reference=loss.reference, batch_size=BATCH_SIZE))
        except InputError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if problems:
        raise InputError(problems)
    return sheets


def _choices(sheets: Sequence[Sheet]) -> Iterator[str]:
    for words, fits in USES:
        names = [_link(sheet) for sheet in sheets if fits(sheet)]
        yield f"* {len(names)} {words}: {', '.join(names) or 'none'}"


def _overview(sheets: Sequence[Sheet]) -> Iterator[str]:
    yield f"{len(sheets)} losses.\n"
    yield _row(COLUMNS)
    yield _row("---" for _ in COLUMNS)
    yield from (_row(_overview_cells(sheet)) for sheet in sheets)


def _overview_cells(sheet: Sheet) -> Iterator[str]:
    needs = sheet.needs
    scored = needs["answers_scored"]
    yield _link(sheet)
    yield _code(" ".join(sheet.card.formula.split())) if sheet.card else _code(sum_formula(sheet)) if sheet.terms else ""
    yield "yes" if "rejected" in needs["required_answers"] else "may lack" if "rejected_present" in needs["facts"] else ""
    yield sheet.reference if needs["reference"] else ""
    yield sheet.corruption if needs["corrupted_views"] else ""
    yield ", ".join(source.rpartition(".")[2] for source in needs["statistics"].values() if isinstance(source, str))
    yield "yes" if "pair_weight" in needs["facts"] else ""
    yield " + ".join(str(number) for number in scored.values()) + (" \\*" if needs["measured_first"] else "")


def _markdown(sheet: Sheet) -> Iterator[str]:
    yield f"\n### {sheet.name}\n\n{_prose(title_of(sheet))}\n"
    for entry in entries_of(sheet):
        yield from _markdown_entry(entry)


def _markdown_entry(entry: Entry) -> Iterator[str]:
    lines = [_code(line) if entry.is_formula else _prose(line) for line in entry.lines]
    if len(lines) == 1:
        yield f"* **{entry.label}**: {lines[0]}"
        return
    yield f"* **{entry.label}**"
    yield from (f"  * {line}" for line in lines)


def _family_words(family: str) -> str:
    if family == SUMS:
        return "Weighted sums, written in yaml alone."
    return str(importlib.import_module(f"medvlm_dpo.objectives.{family}").__doc__).partition("\n")[0]


def _link(sheet: Sheet) -> str:
    return f"[{sheet.name}](#{sheet.name})"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def _prose(text: str) -> str:
    """Words of a card as markdown: outside code its signs are signs, not emphasis or tags."""
    parts = text.split("`")
    return "`".join(_escaped(part) if number % 2 == 0 else part for number, part in enumerate(parts))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("*", "\\*").replace("<", "&lt;")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page; 1 when it was only checked and is stale, 2 when a loss cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m medvlm_dpo.describe", description="Writes the page of all losses.")
    parser.add_argument("file", type=Path, help="the page, docs/objectives.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is not what would be written")
    given = parser.parse_args(arguments)
    try:
        made = page().encode()
    except InputError as error:
        sys.stderr.write("".join(f"error: {problem}\n" for problem in error.problems))
        return 2
    if not given.check:
        write_bytes_atomic(given.file, made)
    elif not given.file.is_file() or given.file.read_bytes() != made:
        sys.stderr.write(f"{given.file} is stale: run `make docs` and commit it\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
