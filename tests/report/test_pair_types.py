"""Preferences per error type: on screen when asked for, always in the files, never a gain without its margin."""

import csv

from sweep_folders import config_of, finish, write_cell, write_sweep

from medvlm_dpo.report.table import main, sweep_table
from medvlm_dpo.results.status import read_document, write_result

DIAGNOSTICS = {"preference_accuracy": 0.75, "preference_gain": 0.5, "chosen_logps_change": -0.5, "rejected_logps_change": -1.75}


def sweep_of_one(output, by_error_type):
    folder = write_cell(output, "phantom_llava-dpo-phantom-s0-00000001", config=config_of("dpo", 0))
    finish(folder, {})
    result = {key: value for key, value in read_document(folder / "result.json").items() if key not in ("schema_version", "finished_at")}
    write_result(folder, {**result, "validation_by_error_type": by_error_type})
    write_sweep(output, "one", [folder.name], [])


def test_shown_when_asked_for_and_always_in_the_files(tmp_path, capsys):
    sweep_of_one(tmp_path, {"size": {**DIAGNOSTICS, "preference_margin": 1.25}})
    assert "per error type" not in sweep_table(tmp_path, "one")
    shown = sweep_table(tmp_path, "one", error_types=True)
    assert "50.0 at +1.25" in shown
    assert "-0.50 / -1.75" in shown
    folder = tmp_path / "sweeps" / "one"
    assert "50.0 at +1.25" in (folder / "table.md").read_text()
    lines = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert {(line["measure"], line["error_type"], float(line["mean"])) for line in lines} >= {("preference_margin", "size", 1.25)}
    assert main([str(tmp_path), "one", "--error-types"]) == 0
    assert "50.0 at +1.25" in capsys.readouterr().out


def test_a_gain_without_its_margin_is_not_shown(tmp_path):
    sweep_of_one(tmp_path, {"size": DIAGNOSTICS})
    assert "50.0" not in sweep_table(tmp_path, "one", error_types=True)


def test_pairs_without_error_types_make_no_section(tmp_path):
    sweep_of_one(tmp_path, {})
    assert "per error type" not in sweep_table(tmp_path, "one", error_types=True)


def test_the_preference_section_says_how_many_pairs_it_rests_on(tmp_path):
    folder = write_cell(tmp_path, "phantom_llava-dpo-phantom-s0-00000001", config=config_of("dpo", 0))
    finish(folder, {"preference_accuracy": 0.5})
    result = {key: value for key, value in read_document(folder / "result.json").items() if key not in ("schema_version", "finished_at")}
    write_result(folder, {**result, "num_examples": {"train": 6, "validation": 7}})
    write_sweep(tmp_path, "one", [folder.name], [])
    assert "Preferences on the validation pairs: phantom_llava, data phantom, 7 pairs" in sweep_table(tmp_path, "one")
