"""The end-of-sweep table on made-up ledgers: its numbers, its words, and what it refuses to say."""

import csv
import math
import re

import numpy as np
import pytest
from sweep_folders import EVALUATION, config_of, demo, finish, grade, write_cell, write_sweep

from medvlm_dpo.errors import InputError
from medvlm_dpo.files import write_json_atomic
from medvlm_dpo.report.layout import WIDTH, Section, as_markdown, as_text
from medvlm_dpo.report.table import main, sweep_table
from medvlm_dpo.results.status import mark_ended, mark_running
from medvlm_dpo.statistics.comparison import Scored, compare

IMAGES = np.repeat(np.arange(40), 5)
MARGINS = {"preference_accuracy": 0.75, "preference_gain": 0.5, "preference_margin": 0.125}


def right(share, seed):
    """Answers of which about a share is right."""
    return np.random.default_rng(seed).random(len(IMAGES)) < share


class World:
    """A sweep that grows cell by cell."""

    def __init__(self, output):
        self.output, self.cells, self.starts = output, [], []

    def start(self, answers, model="phantom_llava", weights="m" * 64):
        config = config_of("none", 0, model=model)
        folder = write_cell(self.output, f"{model}-start-{weights[:8]}", config=config, kind="start", content={"model": weights})
        finish(folder, {})
        grade(folder, answers, IMAGES)
        self.starts.append(folder.name)
        return folder

    def cell(self, loss, seed, answers=None, *, metrics=None, content=None, **settings):
        name = f"cell-{len(self.cells)}-{loss}-s{seed}"
        folder = write_cell(self.output, name, config=config_of(loss, seed, **settings), content=content)
        self.cells.append(name)
        if answers is not None:
            finish(folder, MARGINS if metrics is None else metrics)
            grade(folder, answers, IMAGES)
        return folder

    def table(self):
        write_sweep(self.output, "main", self.cells, self.starts)
        return sweep_table(self.output, "main")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def part(table, title):
    """The lines of one section."""
    sections = re.split(r"\n\n(?=[^\n]+\n-+\n)", table)
    return next(section for section in sections if section.startswith(title)).splitlines()


def line(lines, first):
    """The cells of the one line that begins with a label."""
    (found,) = [re.split(r" {3,}", text.strip()) for text in lines if text.strip().startswith(f"{first}  ")]
    return found


def lines_csv(output):
    with (output / "sweeps" / "main" / "table.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_means_and_spreads_over_seeds(world):
    """Of 200 answers 100, 120 and 140 right: mean 60 %, sample standard deviation 10 points."""
    for seed, count in enumerate((100, 120, 140)):
        world.cell("dpo", seed, np.arange(200) < count)
    world.start(np.arange(200) < 90)
    table = world.table()
    answers = part(table, "Answers")
    assert answers[0] == f"Answers: phantom_llava on {EVALUATION}, 200 questions on 40 images"
    assert line(answers, "dpo")[1:3] == ["0,1,2", "60.0 ± 10.0"]
    assert line(answers, "start")[1:3] == ["-", "45.0"]
    assert any("exact v1" in text and "strict v1" in text for text in answers)
    assert "Of all 800 answers 0 are empty (graded like any other) and 8 reached the length limit." in answers


def test_differences_are_those_of_the_statistics(world):
    scores = {"sft": [right(0.5, seed) for seed in range(3)], "dpo": [right(0.5, seed + 10) for seed in range(3)]}
    start = right(0.5, 99)
    world.start(start)
    for loss, by_seed in scores.items():
        for seed, answers in enumerate(by_seed):
            world.cell(loss, seed, answers)
    world.table()
    found = {
        (row["row"], row["baseline"]): row for row in lines_csv(world.output) if row["kind"] == "difference" and row["grader"] == "exact"
    }
    assert set(found) == {("sft", "start"), ("dpo", "start"), ("dpo", "sft")}
    dpo = Scored({seed: answers.astype(float) for seed, answers in enumerate(scores["dpo"])})
    sft = Scored({seed: answers.astype(float) for seed, answers in enumerate(scores["sft"])})
    for baseline, other in (("sft", sft), ("start", Scored({0: start.astype(float)}, deterministic=True))):
        expected = compare(dpo, other, IMAGES)
        row = found["dpo", baseline]
        assert expected.half_width is not None
        assert float(row["difference"]) == pytest.approx(expected.difference)
        assert float(row["high"]) - float(row["low"]) == pytest.approx(2 * expected.half_width)
        assert float(row["p"]) == pytest.approx(expected.p)
        assert float(row["p_holm"]) >= float(row["p"])


def test_words_for_clear_and_unclear_differences(world):
    """dpo answers all, ipo exactly what the start answers: the first is higher even after correction, the second not distinguishable."""
    world.start(np.arange(200) % 5 != 0)
    for seed in range(5):
        world.cell("dpo", seed, np.ones(200, dtype=bool))
        world.cell("ipo", seed, np.arange(200) % 5 != 0)
    differences = part(world.table(), "Differences")
    exact = differences[: next(number for number, text in enumerate(differences) if text.startswith("strict"))]
    dpo, ipo = (next(text for text in exact if text.strip().startswith(loss)) for loss in ("dpo", "ipo"))
    assert re.search(r"\+20\.0 \[\+\d+\.\d, \+\d+\.\d\]  higher +n/a: no sft", dpo)
    assert re.search(r"\+0\.0 \[-\d\.\d, \+\d\.\d\]  not distinguishable +n/a: no sft", ipo)
    assert any("Holm's correction over the 12 differences" in text for text in differences)


def test_an_interval_without_zero_that_falls_to_holm_is_called_uncorrected(world):
    """A difference of 10 points with p between 0.05/12 and 0.05 among 12 comparisons."""
    start = np.arange(200) % 2 == 0
    world.start(start)
    for seed in range(3):
        better = start.copy()
        better[np.random.default_rng(seed).choice(np.flatnonzero(~start), 14 + 3 * seed, replace=False)] = True
        world.cell("dpo", seed, better)
        world.cell("ipo", seed, start)
    table = world.table()
    (found,) = [
        row
        for row in lines_csv(world.output)
        if (row["kind"], row["row"], row["grader"], row["baseline"]) == ("difference", "dpo", "exact", "start")
    ]
    assert float(found["p"]) < 0.05 <= float(found["p_holm"])
    assert re.search(r"  dpo +\+8\.5 \[\+\d\.\d, \+1\d\.\d\]  higher, uncorrected", table)


def test_one_seed_has_no_spread_and_no_claim(world):
    world.start(np.zeros(200, dtype=bool))
    world.cell("dpo", 3, np.ones(200, dtype=bool))
    table = world.table()
    assert line(part(table, "Answers"), "dpo")[1:3] == ["3", "100.0"]
    assert "1 seed: no spread." in table
    assert re.search(r"  dpo +\+100\.0 \[\+\d+\.\d, \+\d+\.\d\]  higher, uncorrected; 1 seed", table)
    assert "about these two checkpoints, not about the losses" in table


def test_two_seeds_are_called_a_pilot(world):
    world.start(right(0.5, 0))
    for seed in range(2):
        world.cell("dpo", seed, right(0.5, seed + 1))
    assert "2 seeds: t = 12.7" in world.table()


def test_rows_name_the_settings_they_differ_in(world):
    for seed in range(2):
        world.cell("dpo", seed, right(0.5, seed), beta=0.1)
        world.cell("dpo", seed, right(0.5, seed), beta=0.3)
        world.cell("sft", seed, right(0.5, seed))
    answers = part(world.table(), "Answers")
    assert line(answers, "dpo loss.beta=0.1")[1] == "0,1"
    assert line(answers, "dpo loss.beta=0.3")[1] == "0,1"
    assert line(answers, "sft")[1] == "0,1"


def test_edited_data_make_another_row(world):
    for seed in range(2):
        for data in ("d" * 64, "e" * 64):
            world.cell("dpo", seed, right(0.5, seed), content={"data": data, "model": "m" * 64})
    answers = part(world.table(), "Answers")
    assert line(answers, "dpo (data content dddddddd)")[1] == "0,1"
    assert line(answers, "dpo (data content eeeeeeee)")[1] == "0,1"


def test_sft_is_a_baseline_only_with_the_same_data(world):
    world.cell("sft", 0, right(0.5, 0), data="phantom")
    world.cell("dpo", 0, right(0.5, 1), data="phantom")
    world.cell("dpo", 0, right(0.5, 2), data="other", content={"data": "e" * 64, "model": "m" * 64})
    differences = part(world.table(), "Differences")
    assert any(text.startswith("  dpo data=phantom") and "n/a: no sft" not in text for text in differences)
    assert any(text.startswith("  dpo data=other") and "n/a: no sft with these settings" in text for text in differences)
    assert all("n/a: the start has no cell" in text for text in differences if text.startswith("  dpo"))


def test_two_models_are_two_blocks(world):
    world.start(right(0.5, 0))
    world.start(right(0.5, 1), model="phantom_huatuo", weights="h" * 64)
    world.cell("dpo", 0, right(0.5, 2))
    world.cell("dpo", 0, right(0.5, 3), model="phantom_huatuo", content={"data": "d" * 64, "model": "h" * 64})
    table = world.table()
    for model in ("phantom_llava", "phantom_huatuo"):
        assert line(part(table, f"Answers: {model}"), "dpo")[1] == "0"


def test_the_gain_never_stands_without_its_margin(world):
    world.cell("dpo", 0, right(0.5, 0))
    world.cell("ipo", 0, right(0.5, 1), metrics={"preference_accuracy": 0.75, "preference_gain": 0.84})
    preferences = part(world.table(), "Preferences")
    assert line(preferences, "dpo")[1:3] == ["75.0", "50.0 at +0.12"]
    assert line(preferences, "ipo")[1:3] == ["75.0", "-"]
    assert not any("84" in text for text in preferences)
    assert any("not compared" in text for text in preferences)


def test_the_start_has_the_accuracy_that_cells_measured_before_training(world):
    world.start(right(0.5, 0))
    for seed in range(2):
        finish(world.cell("dpo", seed, right(0.5, seed)), MARGINS, before=0.625)
    assert line(part(world.table(), "Preferences"), "start")[1:] == ["62.5", "-", "-", "-"]
    finish(world.cell("ipo", 0, right(0.5, 3)), MARGINS, before=0.5)
    assert not any(text.startswith("start") for text in part(world.table(), "Preferences"))


def test_error_types_with_their_number_of_questions(world):
    world.cell("dpo", 0, np.arange(200) % 4 == 0)  # every fourth question is about presence
    lines = part(world.table(), "Exact match per error type")
    assert lines[2].split() == ["loss", "laterality", "location", "modality", "presence"]
    assert re.split(r" {3,}", lines[3].strip()) == ["n = 50"] * 4
    assert line(lines, "dpo") == ["dpo", "0.0", "0.0", "0.0", "100.0"]


def test_what_is_not_finished_is_listed_and_left_out(world):
    world.cell("dpo", 0, right(0.5, 0))
    failed = world.cell("dpo", 1)
    mark_running(failed)
    mark_ended(failed, "failed", "the loss is\nnot finite")
    world.cell("dpo", 2)
    world.cells.append("gone")
    ungraded = world.cell("kto", 0)
    finish(ungraded, MARGINS)
    (ungraded / "evaluations" / EVALUATION).mkdir(parents=True)
    (ungraded / "evaluations" / EVALUATION / "evaluation.yaml").write_text("schema_version: 1\n")
    table = world.table()
    assert "5 cells: 2 finished, 3 not." in table
    assert line(part(table, "Answers"), "dpo")[1] == "0 of 0,1,2"
    missing = part(table, "Not finished")
    assert line(missing, "cell-1-dpo-s1")[1] == "failed: the loss is not finite"
    assert line(missing, "cell-2-dpo-s2")[1] == "not started"
    assert line(missing, "gone")[1] == "its folder does not exist"
    assert line(missing, ungraded.name)[1] == f"finished, not graded on {EVALUATION}"


def test_nothing_finished_yet_is_still_a_table(world):
    world.cell("dpo", 0)
    table = world.table()
    assert "1 cell: 0 finished, 1 not." in table
    assert "Answers" not in table
    assert "Where everything lies" in table


def test_versions_of_a_grader_stand_apart(world):
    world.start(right(0.5, 0))
    world.cell("sft", 0, right(0.5, 1))
    newer = world.cell("dpo", 0, right(0.5, 2))
    grade(newer, np.ones(200, dtype=bool), IMAGES, version="2")
    table = world.table()
    assert line(part(table, "Answers"), "dpo")[2] == "-"  # nothing of exact v1
    assert "100.0" in line(part(table, "Answers"), "dpo")
    differences = part(table, "Differences")
    newer_part = differences[differences.index("exact v2: exact match") :]
    assert "n/a: not graded yet" in next(text for text in newer_part if text.startswith("  dpo"))


def test_other_questions_are_never_compared(world):
    world.start(right(0.5, 0))
    folder = world.cell("dpo", 0, right(0.5, 1))
    grade(folder, right(0.5, 1)[:150], IMAGES[:150])
    differences = part(world.table(), "Differences")
    assert all("n/a: other questions" in text for text in differences if text.startswith("  dpo"))


def test_identical_seeds_are_pointed_out(world):
    for seed in range(2):
        world.cell("dpo", seed, right(0.5, 7))
    assert "dpo: seeds 0 and 1 gave identical answers; is the seed used?" in world.table()


def test_few_images_give_a_count_only(world):
    few = np.arange(8)
    for loss in ("sft", "dpo"):
        for seed in range(3):
            folder = world.cell(loss, seed, right(0.5, seed))
            grade(folder, np.random.default_rng(seed).random(8) < 0.5, few)
    table = world.table()
    assert "(too few for an interval)" in table
    assert "Fewer than 10 images or questions" in table


def test_places_exist(tmp_path):
    demo(tmp_path, losses=("sft", "dpo"), seeds=(0, 1), num_images=30)
    places = part(sweep_table(tmp_path, "demo"), "Where everything lies")
    cell = re.search(r"CELL is, for example, (\S+)\.", "\n".join(places))
    assert cell is not None
    for name in ("sweeps/demo/table.md", "sweeps/demo/table.csv", "sweeps/demo/sweep.json"):
        assert str(tmp_path / name) in "\n".join(places)
        assert (tmp_path / name).is_file()
    assert (tmp_path / "cells" / cell[1] / "evaluations" / EVALUATION / "predictions.parquet").is_file()


def test_the_demo_fits_a_terminal_and_says_what_the_phantom_is(tmp_path):
    demo(tmp_path, num_images=60)
    table = sweep_table(tmp_path, "demo")
    body = table[: table.index("Where everything lies")]
    assert max(map(len, body.splitlines())) <= WIDTH
    assert "nothing here is a medical result" in table


def test_two_versions_of_the_code_are_mentioned(world):
    world.cell("dpo", 0, right(0.5, 0))
    folder = world.cell("dpo", 1, right(0.5, 1))
    path = folder / "cell.yaml"
    path.write_text(path.read_text().replace("c" * 64, "f" * 64))
    assert "run by 2 versions of the code" in world.table()


def test_the_command(world, capsys):
    world.cell("dpo", 0, right(0.5, 0))
    world.table()
    assert main([str(world.output), "main"]) == 0
    assert capsys.readouterr().out.startswith("Sweep main\n")
    assert main([str(world.output), "mains"]) == 2
    assert "did you mean main?" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_still_prints(world):
    world.cell("dpo", 0, right(0.5, 0))
    write_sweep(world.output, "main", world.cells, [])
    (world.output / "sweeps" / "main" / "table.md").mkdir()
    table = sweep_table(world.output, "main")
    assert line(part(table, "Answers"), "dpo")[1] == "0"
    assert "table.md and table.csv were not written" in table


def test_a_broken_file_is_named(world):
    folder = world.cell("dpo", 0, right(0.5, 0))
    write_json_atomic(folder / "result.json", {"metrics": {}})
    (folder / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result\.json cannot be read"):
        world.table()


def test_markdown_and_csv_hold_the_same_numbers(world):
    for seed, count in enumerate((100, 120, 140)):
        world.cell("dpo", seed, np.arange(200) < count)
    world.table()
    markdown = (world.output / "sweeps" / "main" / "table.md").read_text()
    assert "| dpo | 0,1,2 | 60.0 ± 10.0 |" in markdown
    (row,) = [row for row in lines_csv(world.output) if row["kind"] == "score" and row["grader"] == "exact" and not row["error_type"]]
    assert (float(row["mean"]), row["num_seeds"]) == (pytest.approx(0.6), "3")
    assert math.isclose(float(row["sd"]), 0.1)


def test_wide_tables_continue_below_with_their_first_column():
    header = ("loss", *(f"a rather long column {number}" for number in range(8)))
    text = as_text([Section("Wide", header, (("dpo", *map(str, range(8))),))])
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [text.split()[0] for text in lines if text.startswith("dpo")] == ["dpo", "dpo"]
    assert sum(text.count("a rather long column") for text in lines) == 8


def test_markdown_escapes_bars():
    assert "| a\\|b |" in as_markdown([Section("T", ("x",), (("a|b",),))])
