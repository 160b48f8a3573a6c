"""From records to token ids: what a loss asks for and the records do not have."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from core_world import loss_node, make_backbone, make_pairs

from medvlm_dpo.backbones.llava import LlavaBackbone
from medvlm_dpo.data.corruption.geometry import Crop
from medvlm_dpo.data.corruption.plain import File
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.data.records import BadRecord, ReadReport
from medvlm_dpo.errors import InputError
from medvlm_dpo.objectives.terms import build_objective
from medvlm_dpo.preparation import corruption_problems, encode_split, prepare_data, record_problems, unmatched_problems
from medvlm_dpo.vocab import Example, Turn

WEIGHTED = """
from medvlm_dpo.vocab import ObjectiveOutput, PerExample


def weighted(policy_chosen_logps: PerExample, pair_weight: PerExample) -> ObjectiveOutput:
    return ObjectiveOutput(-policy_chosen_logps * pair_weight, {"chosen": policy_chosen_logps})

"""


class Source:
    """Gives what it was made with."""

    data_class = "public"

    def __init__(
        self, *, train: tuple[Example, ...] = (), validation: tuple[Example, ...] = (), dropped: tuple[BadRecord, ...] = ()
    ) -> None:
        self._report = ReadReport({"train": train, "validation": validation}, dropped=dropped, notes=("a note",))

    def read(self) -> ReadReport:
        return self._report

    def input_files(self) -> tuple[Path, ...]:
        return ()

    def recipe(self) -> dict[str, object]:
        return {}


@pytest.fixture(scope="module")
def backbone(untrained_model: Path) -> LlavaBackbone:
    return make_backbone(untrained_model, loaded=False, max_length=200)


@pytest.fixture
def own_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_losses_of_preparation.py").write_text(WEIGHTED)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_losses_of_preparation"


def long(example: Example) -> Example:
    return replace(example, turns=(Turn("human", "Please. " * 100),))


def test_what_does_not_fit_the_context_joins_the_dropped(backbone: LlavaBackbone) -> None:
    one, two, three = make_pairs(3)
    earlier = BadRecord(reason="no image", id="earlier")
    source = Source(train=(one, long(two)), validation=(three,), dropped=(earlier,))

    prepared = prepare_data(source, backbone, Manifest(), on_bad_record="drop")

    assert prepared.examples == {"train": (one,), "validation": (three,)}
    assert [record.id for record in prepared.dropped] == ["earlier", two.id]
    assert "shorten the answer" in prepared.dropped[1].reason
    assert prepared.notes == ("a note",)
    with pytest.raises(InputError, match="1 of 3 records are bad"):
        prepare_data(source, backbone, Manifest(), on_bad_record="error")


def test_the_longest_answer_that_fits_is_kept(backbone: LlavaBackbone) -> None:
    (example,) = make_pairs(1)
    room = backbone.encoder.max_length - len(backbone.encoder.prompt_ids(example.turns))
    fits = replace(example, rejected="x" * (room - 2))  # a space of the template, the letters, the end
    assert len(backbone.encoder.answer_ids(str(fits.rejected))) <= room
    while len(backbone.encoder.answer_ids(str(fits.rejected))) < room:
        fits = replace(fits, rejected=f"{fits.rejected}x")

    assert prepare_data(Source(train=(fits,)), backbone, Manifest(), on_bad_record="error").examples["train"] == (fits,)
    with pytest.raises(InputError, match="1 of 1 records are bad"):
        prepare_data(Source(train=(replace(fits, rejected=f"{fits.rejected} x"),)), backbone, Manifest(), on_bad_record="error")


def test_no_training_example_is_refused(backbone: LlavaBackbone) -> None:
    with pytest.raises(InputError, match="no training example is left"):
        prepare_data(Source(validation=make_pairs(1)), backbone, Manifest(), on_bad_record="error")


def test_a_missing_weight_is_never_1(own_losses: str) -> None:
    objective = build_objective({"_target_": f"{own_losses}.weighted", "_partial_": True}, batch_size=2)
    one, two = (replace(pair, pair_weight=None) for pair in make_pairs(2))

    problems = record_problems(objective, {"train": (replace(one, pair_weight=0.5), two)}, unpaired_losses=lambda: ["kto"])

    assert len(problems) == 1
    assert f"1 of 2 records have none (field weighted_score, first: id {two.id})" in problems[0]
    weighted = {"train": (replace(one, pair_weight=0.5), replace(two, pair_weight=2.0))}
    assert record_problems(objective, weighted, unpaired_losses=lambda: ["kto"]) == []


def test_weights_that_are_all_0_train_nothing(own_losses: str) -> None:
    weighted = build_objective({"_target_": f"{own_losses}.weighted", "_partial_": True}, batch_size=2)
    one, two, three = (replace(pair, pair_weight=0.0) for pair in make_pairs(3))

    def problems(third: Example) -> list[str]:
        return record_problems(weighted, {"train": (one, third), "validation": (two,)}, unpaired_losses=lambda: ["kto"])

    (problem,) = problems(three)
    assert problem.startswith("loss needs pair_weight, but every pair_weight is 0 in the training records (field weighted_score)")
    assert problems(replace(three, pair_weight=1e-9)) == []
    heavy_validation = {"train": (one, three), "validation": (replace(two, pair_weight=1.0),)}
    assert len(record_problems(weighted, heavy_validation, unpaired_losses=lambda: ["kto"])) == 1
    unweighted = build_objective(loss_node("dpo"), batch_size=2)
    assert record_problems(unweighted, {"train": (one, three)}, unpaired_losses=lambda: ["kto"]) == []


def test_missing_answers_count_over_both_splits() -> None:
    objective = build_objective(loss_node("dpo"), batch_size=2)
    one, two, three = make_pairs(3)
    examples = {"train": (one, two), "validation": (replace(three, rejected=None),)}

    problems = record_problems(objective, examples, unpaired_losses=lambda: ["kto", "sft"])

    assert problems == [
        f"loss term dpo needs a rejected answer; 1 of 3 examples have none (first: id {three.id}). Unpaired data works with kto, sft"
    ]


def test_unmatched_answers_are_encoded_only_for_losses_that_ask(backbone: LlavaBackbone) -> None:
    def views(loss: str, examples: tuple[Example, ...]) -> set[str]:
        demand = build_objective(loss_node(loss), batch_size=2).demand
        return {view for example in encode_split(examples, demand, backbone, None) for view in example.answers}

    pairs: Any = make_pairs(6)
    assert views("dpo", pairs) == {"chosen", "rejected"}
    assert views("kto", pairs) == {"chosen", "rejected", "unmatched"}
    assert views("kto", ()) == set()
    assert unmatched_problems((), backbone) == []


def test_corrupted_pictures_and_changed_tokens_are_made_only_for_losses_that_ask(backbone: LlavaBackbone) -> None:
    pairs: Any = make_pairs(3)
    crop = Crop(seed=0, min_area_fraction=0.05, max_area_fraction=0.2)
    found = {
        loss: encode_split(pairs, build_objective(loss_node(loss), batch_size=2).demand, backbone, crop) for loss in ("dpo", "mdpo", "ddpo")
    }
    assert [example.corrupted is None for loss in ("dpo", "mdpo", "ddpo") for example in found[loss]] == [True] * 3 + [False] * 3 + [
        True
    ] * 3
    assert [bool(example.changed) for loss in ("dpo", "mdpo", "ddpo") for example in found[loss]] == [False] * 6 + [True] * 3
    assert len({example.corrupted.key for example in found["mdpo"] if example.corrupted is not None}) == 3


def test_records_that_cannot_be_corrupted_are_counted_over_both_splits() -> None:
    pairs: Any = make_pairs(3)
    without = tuple(replace(pair, rejected_image=None) for pair in pairs)
    splits = {"train": (*pairs, without[0]), "validation": without}
    (problem,) = corruption_problems(File(missing="error"), "file", splits)
    assert problem.startswith(
        f"corruption=file, but 4 of 7 records cannot be corrupted so: record id {without[0].id} has no rejected_image"
    )
    assert "corruption.missing=clean" in problem
    assert corruption_problems(File(missing="clean"), "file", splits) == []
