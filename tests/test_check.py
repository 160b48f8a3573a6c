"""The deep check: every mistake at once, before anything starts, and contents that follow the data and not its place."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_world import loss_node, make_backbone, make_config, make_pairs, write_user_pairs, write_user_questions
from PIL import Image

from medvlm_dpo.check import check_cells
from medvlm_dpo.config.catalogue import loss_names
from medvlm_dpo.config.identity import CheckedCell, cell_identity
from medvlm_dpo.preparation import unmatched_problems
from medvlm_dpo.vocab import Turn

PAIRS: list[tuple[str, str | None]] = [(f"Yes, {place}.", f"No, {place}.") for place in range(6)]


class World:
    """A model, an output folder and a user's folder."""

    def __init__(self, model: Path, root: Path) -> None:
        self.model, self.root = model, root

    def config(self, **changes: Any) -> dict[str, Any]:
        return make_config(self.model, self.root / "outputs", **changes)

    def check(self, *configs: dict[str, Any], full: bool = False) -> list[CheckedCell]:
        return check_cells(list(configs), str(self.root / "outputs" / "manifest.json"), full)

    def problems(self, **changes: Any) -> list[str]:
        return self.check(self.config(**changes))[0].problems


@pytest.fixture
def world(untrained_model: Path, tmp_path: Path) -> World:
    return World(untrained_model, tmp_path)


def test_a_good_cell_has_contents_and_facts(world: World) -> None:
    cell = world.check(world.config(trainer={"max_steps": None, "max_epochs": 1.5}))[0]

    assert cell.problems == []
    assert {name: len(digest) for name, digest in cell.content.items()} == {"data": 64, "model": 64}
    assert len(cell.evaluation_content) == 64
    assert set(cell.graders) == {"exact"}
    assert (cell.num_train_examples, cell.steps) == (8, 3)


@pytest.mark.parametrize("loss", loss_names())
def test_every_loss_passes(world: World, loss: str) -> None:
    assert world.problems(loss=loss_node(loss)) == []


def test_groups_a_loss_does_not_read_are_named(world: World) -> None:
    unread = {loss: world.check(world.config(loss=loss_node(loss)))[0].unread for loss in ("sft", "dpo", "mdpo", "perception")}
    assert unread == {"sft": ["corruption", "reference"], "dpo": ["corruption"], "mdpo": [], "perception": ["reference"]}


def test_a_corruption_that_nobody_reads_is_said_when_the_command_names_it(world: World) -> None:
    asked = {"overrides": ["loss=dpo", "corruption=blur", "corruption.radius_fraction=0.2"]}
    notes = world.check(world.config(**asked))[0].notes
    assert "corruption=blur corruption.radius_fraction=0.2 changes nothing for loss=dpo: no term of it reads a corrupted image" in notes
    assert not any("changes nothing" in note for note in world.check(world.config(loss=loss_node("mdpo"), **asked))[0].notes)
    assert not any("changes nothing" in note for note in world.check(world.config())[0].notes)


def test_a_moving_reference_needs_a_loss_that_reads_one(world: World) -> None:
    moving = {"_target_": "medvlm_dpo.reference.MovingReference", "mix": 0.6, "every_steps": 2}
    choices = {**world.config()["choices"], "loss": "simpo", "reference": "moving"}
    assert world.problems(reference=moving, loss=loss_node("simpo"), choices=choices) == [
        "reference=moving, but simpo reads no reference; leave reference= away"
    ]
    assert world.problems(reference=moving) == []
    assert world.problems(reference={**moving, "mix": 2.0}) == ["reference.mix must be in (0, 1], got 2.0"]


def test_another_reference_than_the_losses_own_is_said(world: World) -> None:
    start = {"_target_": "medvlm_dpo.reference.StartingReference"}
    choices = {**world.config()["choices"], "loss": "tr_dpo", "reference": "adapter_off"}
    asked = {"loss": loss_node("tr_dpo"), "reference": start, "choices": choices}
    said = "loss=tr_dpo is defined with reference=moving; with reference=adapter_off the name stands for another loss"
    assert said in world.check(world.config(**asked, overrides=["loss=tr_dpo", "reference=adapter_off"]))[0].notes
    assert said not in world.check(world.config(**asked, overrides=["loss=tr_dpo"]))[0].notes
    dpo = world.check(world.config(choices={**choices, "loss": "dpo"}, overrides=["loss=dpo", "reference=adapter_off"]))[0].notes
    assert not any("stands for another loss" in note for note in dpo)


def test_a_reference_that_never_moves_in_this_run_is_said(world: World) -> None:
    moving = {"_target_": "medvlm_dpo.reference.MovingReference", "mix": 0.6, "every_steps": 3}

    def notes(steps: int, loss: str) -> list[str]:
        return world.check(world.config(loss=loss_node(loss), reference=moving, trainer={"max_steps": steps}))[0].notes

    assert any(
        note.startswith("reference.every_steps=3 is not less than the 3 steps of this run: the reference never moves")
        for note in notes(3, "dpo")
    )
    assert not any("never moves" in note for note in notes(4, "dpo"))
    assert not any("never moves" in note for note in notes(3, "sft"))


def test_a_corruption_the_records_do_not_allow_is_refused(world: World) -> None:
    pairs = write_user_pairs(world.root / "user", PAIRS)
    file = {"_target_": "medvlm_dpo.data.corruption.plain.File", "missing": "error"}
    choices = {**world.config()["choices"], "corruption": "file"}
    (problem,) = world.problems(loss=loss_node("re_align_rdpo"), data=pairs, corruption=file, choices=choices)
    assert problem.startswith("corruption=file, but 6 of 6 records cannot be corrupted so: record id case_")
    assert world.problems(loss=loss_node("dpo"), data=pairs, corruption=file, choices=choices) == []
    assert world.problems(loss=loss_node("re_align_rdpo"), data=pairs, corruption={**file, "missing": "clean"}, choices=choices) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"beta": -0.1}}, "loss.beta"),
        ({"loss": {"betta": 0.1}}, "did you mean beta?"),
        ({"loss": {"_target_": "medvlm_dpo.objectives.contrastive.dpoo"}}, "dpoo"),
        ({"trainer": {"learning_rate": -1e-4}}, "trainer.learning_rate must be >= 0, got -0.0001"),
        ({"trainer": {"learning_rate": float("nan")}}, "trainer.learning_rate must be >= 0, got nan"),
        ({"trainer": {"weight_decay": float("inf")}}, "trainer.weight_decay must be >= 0, got inf"),
        ({"trainer": {"max_epochs": 0.0}}, "trainer.max_epochs must be > 0, got 0.0"),
        ({"trainer": {"max_epochs": float("inf")}}, "trainer.max_epochs must be > 0, got inf"),
        ({"trainer": {"checkpoint_every_min": -1}}, "trainer.checkpoint_every_min must be > 0, got -1"),
        ({"trainer": {"batch_size": 0}}, "trainer.batch_size must be >= 1, got 0"),
        ({"trainer": {"micro_batch_size": 0}}, "trainer.micro_batch_size must be >= 1, got 0"),
        ({"trainer": {"micro_batch_tokens": 0}}, "trainer.micro_batch_tokens must be >= 1, got 0"),
        ({"cache": {"folder": " "}}, "cache.folder is empty; name a folder, or use cache=none"),
        ({"cache": {"limit_gb": 0}}, "cache.limit_gb must be > 0 or null, got 0"),
        ({"cache": {"folder": __file__}}, f"cache.folder={__file__}: {__file__} is a file, so no folder can be there; give another"),
        ({"trainer": {"order": "image"}}, "trainer.order must be shuffled or image_tree, got 'image'"),
        ({"trainer": {"layout": "packed"}}, "trainer.layout must be auto or plain, got 'packed'"),
        ({"trainer": {"lr_warmup_fraction": 1.5}}, "trainer.lr_warmup_fraction must lie in [0, 1], got 1.5"),
        ({"trainer": {"batch_size": "four"}}, "trainer.batch_size: TrainerSettings expects a whole number, got 'four'"),
        ({"trainer": {"learning_rte": 1.0}}, "trainer.learning_rte: TrainerSettings takes no 'learning_rte'; did you mean learning_rate?"),
        ({"adapter": {"rank": 0}}, "adapter.rank must be >= 1, got 0"),
        ({"adapter": {"rnk": 4}}, "adapter.rnk: LoraSettings takes no 'rnk'; did you mean rank?"),
        ({"model": {"checkpoint": None}}, "model.checkpoint is not set. This model needs a test model"),
        ({"model": {"checkpoint": "/nowhere"}}, "model.checkpoint=/nowhere: there is no such folder"),
        ({"model": {"max_len": 3}}, "model.max_len: LlavaBackbone takes no 'max_len'; did you mean max_length?"),
        (
            {"model": {"prompt": {"begin_of_sequence": True, "image": "<image>", "human": "{txt}", "gpt": "{text}"}}},
            "model.prompt.human: expected {text}",
        ),
        ({"decoding": {"max_new_tokens": 0}}, "decoding.max_new_tokens must be >= 1, got 0"),
        ({"decoding": {"beams": 2}}, "decoding.beams: DecodingSettings takes no 'beams'"),
        ({"decoding": {"max_new_tokens": 500}}, "questions leave no room for 500 new tokens"),
        ({"data": {"num_pairs": 0}}, "data.num_pairs=0"),
        ({"data": {"num_pars": 3}}, "did you mean num_pairs?"),
        ({"data": {"own_wrong_fraction": 0.5}}, "comes without a file of its own wrong answers"),
        ({"evaluation": {"graders": {}}}, "evaluation.graders is empty"),
        ({"evaluation": {"nme": "x"}}, "evaluation.nme: vqa_task takes no 'nme'; did you mean name?"),
        ({"reference": {"_target_": "medvlm_dpo.reference.startng_values", "_partial_": True}}, "startng_values"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(world: World, changes: dict[str, Any], message: str) -> None:
    problems = world.problems(**changes)

    assert [problem for problem in problems if message in problem], problems
    assert len(problems) == 1
    assert not (world.root / "outputs").exists()


def test_mistakes_of_all_groups_are_told_at_once(world: World) -> None:
    user = write_user_pairs(world.root / "user", [*PAIRS, ("same", "same")])
    problems = world.problems(
        model={"checkpoint": None},
        adapter={"rank": 0},
        loss={"beta": -1},
        trainer={"learning_rate": -1, "batch_size": 0},
        decoding={"max_new_toks": 2},
        evaluation={
            "questions": {
                "_target_": "medvlm_dpo.data.phantom.source.PhantomQuestions",
                "data_class": "public",
                "split": "tst",
                "num_questions": 0,
            }
        },
        data=user,
    )

    wanted = (
        "model.checkpoint is not set",
        "adapter.rank",
        "loss.beta",
        "trainer.learning_rate",
        "trainer.batch_size",
        "decoding.max_new_toks",
    )
    wanted += ("has no split 'tst'; did you mean test?", "num_questions=0", "the chosen and the rejected answer are equal")
    for part in wanted:
        assert [problem for problem in problems if part in problem], (part, problems)


def test_problems_of_one_cell_are_not_those_of_another(world: World) -> None:
    good, bad = world.check(world.config(), world.config(loss={"beta": -1}))

    assert good.problems == []
    assert len(bad.problems) == 1


# --- the user's records ----------------------------------------------------------------------------------------------


def user_config(world: World, answers: Sequence[tuple[str | None, str | None]], **changes: Any) -> dict[str, Any]:
    config = world.config(**changes)
    config["data"] = write_user_pairs(world.root / "user", answers)
    return config


def test_an_answer_longer_than_the_context_is_named(world: World) -> None:
    config = user_config(world, [*PAIRS, ("Yes. " * 300, "No.")])

    problems = world.check(config)[0].problems

    assert problems[0].startswith("1 of 7 records are bad")
    assert "pairs.json, record 7, id case_6: " in problems[1]
    assert "context of 512" in problems[1]
    assert len(problems) == 2


def test_a_long_answer_is_dropped_when_asked(world: World) -> None:
    config = user_config(world, [*PAIRS, ("Yes. " * 300, "No.")])
    config["data"]["on_bad_record"] = "drop"

    cell = world.check(config)[0]

    assert cell.problems == []
    assert [note for note in cell.notes if "1 bad record left out" in note]


def test_converted_images_and_dropped_rows_of_an_evaluation_are_said(world: World) -> None:
    cell = world.check(world.config(evaluation={"questions": write_user_questions(world.root / "asked")}))[0]

    assert cell.problems == []
    assert "evaluation: 1 image is CMYK, converted to RGB" in cell.notes
    assert "1 bad record left out (evaluation.on_bad_record=drop); listed in scores.json" in cell.notes


def test_losses_of_pairs_refuse_single_answers_and_say_which_do_not(world: World) -> None:
    config = user_config(world, [*PAIRS, ("Perhaps.", None)])

    problems = world.check(config)[0].problems

    assert len(problems) == 1
    assert "loss term dpo needs a rejected answer; 1 of 7 examples have none (first: id case_6)" in problems[0]
    assert problems[0].endswith("kto")
    assert world.check({**config, "loss": loss_node("kto")})[0].problems == []


@pytest.mark.parametrize("loss", ["kto", "bco"])
def test_losses_of_single_answers_accept_undesirable_ones_alone(world: World, loss: str) -> None:
    config = user_config(world, [*((None, f"No, {place}.") for place in range(6)), ("Yes.", None)])

    assert world.check({**config, "loss": loss_node(loss)})[0].problems == []
    (problem,) = world.check({**config, "loss": loss_node("sft")})[0].problems
    assert problem.startswith("loss term sft needs a chosen answer; 6 of 7 examples have none (first: id case_")


def test_unmatched_answers_must_exist(world: World) -> None:
    equal = user_config(world, [("Yes.", f"No, {place}.") for place in range(6)])
    assert world.check(equal)[0].problems == []
    assert any("at least two different ones" in problem for problem in world.check({**equal, "loss": loss_node("kto")})[0].problems)


def test_an_unmatched_answer_must_fit_the_prompt_too(untrained_model: Path) -> None:
    first, second = make_pairs(2)
    pairs = (replace(first, turns=(Turn("human", "Please. " * 60),), chosen="Yes."), replace(second, chosen="Never. " * 60))
    backbone = make_backbone(untrained_model, loaded=False)
    lengths = [len(backbone.encoder.prompt_ids(pair.turns)) + len(backbone.encoder.answer_ids(str(pair.chosen))) for pair in pairs]

    backbone.encoder.max_length = max(lengths)
    problems = unmatched_problems(pairs, backbone)

    assert len(problems) == 1
    assert f"for 1 of 2 examples (first: id {first.id})" in problems[0]
    backbone.encoder.max_length = 2 * max(lengths)
    assert unmatched_problems(pairs, backbone) == []


def test_a_loss_on_corrupted_images_needs_a_corruption(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "own_losses_of_check.py").write_text(
        "from medvlm_dpo.vocab import ObjectiveOutput, PerExample\n"
        "def corrupted(policy_chosen_logps: PerExample, policy_chosen_corrupt_logps: PerExample) -> ObjectiveOutput:\n"
        "    return ObjectiveOutput(policy_chosen_corrupt_logps - policy_chosen_logps, {'chosen': policy_chosen_logps})\n"
    )
    monkeypatch.syspath_prepend(world.root)

    problems = world.problems(loss={"_target_": "own_losses_of_check.corrupted", "_partial_": True}, corruption=None)

    assert len(problems) == 1
    assert problems[0].startswith("this loss scores answers on a corrupted image, but corruption=none; choose one of blank, blur, crop, ")


@pytest.mark.parametrize("num_pairs", [1, 5])
def test_validation_pairs_too_few_for_a_batch_statistic_are_counted(world: World, num_pairs: int) -> None:
    """Five pairs in batches of four leave two batches, the smaller of two pairs; one pair stays alone."""
    problems = world.problems(loss=loss_node("beta_dpo"), data={"num_validation_pairs": num_pairs})
    alone = ["validation, 1 pair at a time: beta_dpo needs a global batch of at least 2 pairs, got 1"]
    assert problems == (alone if num_pairs == 1 else [])


def test_more_batch_than_data_is_said(world: World) -> None:
    cell = world.check(world.config(trainer={"batch_size": 20}))[0]

    assert cell.problems == []
    assert cell.notes == ["trainer.batch_size=20 is more than the 8 training examples: some stand in one step twice"]


# --- contents --------------------------------------------------------------------------------------------------------


def identity(world: World, config: dict[str, Any]) -> tuple[str, dict[str, str]]:
    cell = world.check(config)[0]
    assert cell.problems == []
    return cell_identity(config, cell.content).hash, cell.content


def test_content_follows_the_files_and_not_their_place(world: World) -> None:
    config = user_config(world, PAIRS)
    first = identity(world, config)

    moved = Path(shutil.move(world.root / "user", world.root / "elsewhere"))
    config["data"].update(path=str(moved / "pairs.json"), image_root=str(moved / "images"))
    assert identity(world, config) == first

    Image.fromarray(np.zeros((24, 24, 3), dtype=np.uint8)).save(moved / "images" / "0.png")
    other_image = identity(world, config)
    assert other_image[1]["data"] != first[1]["data"]
    assert other_image[0] != first[0]

    file = moved / "pairs.json"
    file.write_text(file.read_text().replace("Yes, 1.", "Maybe, 1."))
    assert identity(world, config)[1]["data"] not in (first[1]["data"], other_image[1]["data"])


def test_content_follows_the_weights_and_not_their_place(world: World, untrained_model: Path) -> None:
    first = identity(world, world.config())
    copy = Path(shutil.copytree(untrained_model, world.root / "copy"))
    there = {"model": {"checkpoint": str(copy)}, "data": {"starting_model": str(copy)}}
    assert identity(world, world.config(**there)) == first

    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert identity(world, world.config(**there))[1]["model"] != first[1]["model"]


def test_a_full_check_sees_what_size_and_time_hide(world: World) -> None:
    config = user_config(world, PAIRS)
    image = Path(config["data"]["image_root"]) / "0.png"
    old = 1_600_000_000_000_000_000
    os.utime(image, ns=(old, old))
    first = world.check(config)[0].content["data"]
    content = bytearray(image.read_bytes())
    content[-1] ^= 1  # the checksum of the last chunk, which decoders do not read
    image.write_bytes(bytes(content))
    os.utime(image, ns=(old, old))

    assert world.check(config)[0].content["data"] == first
    assert world.check(config, full=True)[0].content["data"] != first
