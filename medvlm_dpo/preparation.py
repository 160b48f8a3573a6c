"""From a data node to token ids: read once for the check and once for the run, by the same code, so that both see the same examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.data.content import read_source
from medvlm_dpo.data.corruption.base import Corruption, corrupted_image
from medvlm_dpo.data.encoding import EncodedExample, encode_examples, own_answer
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.data.partners import unmatched_partners
from medvlm_dpo.data.records import BadRecord, DataSource, apply_policy
from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.demand import Demand
from medvlm_dpo.objectives.terms import Objective, missing_answer_problems
from medvlm_dpo.vocab import CORRUPT_VIEWS, TOKEN_FACTS, Example, Question


@dataclass(frozen=True)
class PreparedData:
    """Examples of a cell, usable and in order.

    Args:
        examples: by split, `train` and `validation`.
        dropped: records left out under `on_bad_record=drop`.
        notes: one line each, to be said once.
    """

    examples: Mapping[str, tuple[Example, ...]]
    dropped: tuple[BadRecord, ...]
    notes: tuple[str, ...]


def prepare_data(source: DataSource, backbone: AbstractBackbone, manifest: Manifest, *, on_bad_record: str) -> PreparedData:
    """Reads a source and refuses or drops what does not fit the model's context.

    Raises:
        InputError: for unusable input, and for bad records unless they are to be dropped.
    """
    report = read_source(source, manifest)
    too_long = {
        example.id: reason for split in report.examples.values() for example in split if (reason := _length_problem(example, backbone))
    }
    bad = [BadRecord(reason, id_, report.source, report.places.get(id_, "")) for id_, reason in too_long.items()]
    dropped = apply_policy(bad, on_bad_record, sum(map(len, report.examples.values())), source.data_class)
    examples = {name: tuple(example for example in split if example.id not in too_long) for name, split in report.examples.items()}
    if not examples.get("train"):
        raise InputError("data: no training example is left")
    return PreparedData(examples, report.dropped + dropped, report.notes)


def _length_problem(example: Example, backbone: AbstractBackbone) -> str | None:
    encoder = backbone.encoder
    prompt = len(encoder.prompt_ids(example.turns))
    answers = {"chosen": example.chosen, "rejected": example.rejected}
    longest = max(len(encoder.answer_ids(text)) for text in answers.values() if text is not None)
    if prompt + longest <= encoder.max_length:
        return None
    return (
        f"prompt of {prompt} tokens (image included) and answer of {longest} are longer than the model's context of "
        f"{encoder.max_length}; shorten the answer or raise model.max_length if the model allows"
    )


def question_problems(questions: tuple[Question, ...], backbone: AbstractBackbone, *, max_new_tokens: int) -> list[str]:
    """Questions that leave no room for an answer; images are never truncated, so they cannot be asked."""
    room = backbone.encoder.max_length - max_new_tokens
    long = [question.id for question in questions if len(backbone.encoder.prompt_ids(question.turns)) > room]
    if not long:
        return []
    return [
        f"evaluation: {len(long)} of {len(questions)} questions leave no room for {max_new_tokens} new tokens in a context of "
        f"{backbone.encoder.max_length} (first: id {long[0]}); shorten them or lower decoding.max_new_tokens"
    ]


def record_problems(
    objective: Objective, examples: Mapping[str, tuple[Example, ...]], *, unpaired_losses: Callable[[], Sequence[str]]
) -> list[str]:
    """What a loss asks for and the records do not have.

    Args:
        objective: the built loss.
        examples: by split.
        unpaired_losses: gives the names of losses that accept examples with one answer; asked only for a message.
    """
    every = [example for split in examples.values() for example in split]
    missing = {
        "chosen": [example.id for example in every if example.chosen is None],
        "rejected": [example.id for example in every if example.rejected is None],
    }
    problems = missing_answer_problems(objective, missing, num_examples=len(every), unpaired_losses=unpaired_losses)
    return problems + (_weight_problems(every, examples["train"]) if "pair_weight" in objective.demand.facts else [])


def _weight_problems(every: Sequence[Example], train: Sequence[Example]) -> list[str]:
    weightless = [example.id for example in every if example.pair_weight is None]
    if weightless:
        return [
            f"loss needs pair_weight, but {len(weightless)} of {len(every)} records have none (field weighted_score, "
            f"first: id {weightless[0]}); a missing weight is never taken as 1"
        ]
    if any(example.pair_weight for example in train):
        return []
    return [
        "loss needs pair_weight, but every pair_weight is 0 in the training records (field weighted_score): what reads it would train "
        "nothing; give some records a weight above 0, or choose a loss without weights"
    ]


def unmatched_problems(examples: tuple[Example, ...], backbone: AbstractBackbone) -> list[str]:
    """Why a loss cannot score another example's answer on an example's prompt: there is none, or the two are too long together."""
    if not examples:
        return []
    try:
        partners = unmatched_partners(examples)
    except InputError as error:
        return list(error.problems)
    encoder = backbone.encoder
    long = [
        example.id
        for example, partner in zip(examples, partners, strict=True)
        if len(encoder.prompt_ids(example.turns)) + len(encoder.answer_ids(own_answer(examples[partner]))) > encoder.max_length
    ]
    if not long:
        return []
    return [
        f"data: this loss scores other examples' answers too, and for {len(long)} of {len(examples)} examples (first: id {long[0]}) prompt "
        f"and such an answer are longer than the model's context of {encoder.max_length}; shorten the longest answers"
    ]


def corruption_problems(corruption: Corruption, name: str, examples: Mapping[str, tuple[Example, ...]]) -> list[str]:
    """Why some corrupted pictures cannot be made.

    Args:
        corruption: the corruption.
        name: what the user calls it.
        examples: by split.
    """
    every = [example for split in examples.values() for example in split]
    lacking = [(example.id, reason) for example in every if (reason := corruption.lacks(example)) is not None]
    if not lacking:
        return []
    first, reason = lacking[0]
    return [f"corruption={name}, but {len(lacking)} of {len(every)} records cannot be corrupted so: record id {first} {reason}"]


def encode_split(
    examples: tuple[Example, ...], demand: Demand, backbone: AbstractBackbone, corruption: Corruption | None
) -> tuple[EncodedExample, ...]:
    """Token ids of a split, with what the loss asks for besides: unmatched answers, corrupted pictures, changed tokens."""
    return encode_examples(
        examples,
        unmatched_partners(examples) if "unmatched" in demand.views and examples else None,
        backbone.encoder,
        corrupted=partial(corrupted_image, corruption) if corruption is not None and reads_corrupted(demand) else None,
        with_changes=bool(demand.facts & TOKEN_FACTS),
    )


def reads_corrupted(demand: Demand) -> bool:
    """Whether a loss scores answers on corrupted pictures."""
    return not demand.views.isdisjoint(CORRUPT_VIEWS)
