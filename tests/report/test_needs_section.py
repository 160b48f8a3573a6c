"""What each loss needed and cost: short words for what was scored, means over seeds for what it took."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from sweep_folders import config_of, finish, write_cell, write_sweep

from medvlm_dpo.config.catalogue import catalogue
from medvlm_dpo.objectives.needs import needs_of
from medvlm_dpo.objectives.terms import build_objective
from medvlm_dpo.report.layout import WIDTH
from medvlm_dpo.report.table import sweep_table
from medvlm_dpo.results.status import read_document, write_result

NEEDS: dict[str, Any] = {
    "policy_with_gradient": ["chosen", "chosen_corrupt", "rejected"],
    "policy_without_gradient": [],
    "reference": ["chosen", "chosen_corrupt", "rejected"],
    "reference_distributions": [],
    "corrupted_views": ["chosen_corrupt"],
    "statistics": {},
}
TITLE = "What each loss needed and cost: phantom_llava, data phantom"


class World:
    """A sweep of trained cells without answers."""

    def __init__(self, output: Path) -> None:
        self.output, self.names = output, list[str]()

    def cell(
        self, loss: str, seed: int = 0, *, training: dict[str, Any] | None = None, needs: dict[str, Any] | None = None, corruption="none"
    ):
        config = config_of(loss, seed)
        config["choices"]["corruption"] = corruption
        folder = write_cell(self.output, f"cell-{len(self.names)}", config=config)
        finish(folder, {})
        result = {
            key: value for key, value in read_document(folder / "result.json").items() if key not in ("schema_version", "finished_at")
        }
        told = {"training": training, "needs": needs}
        write_result(folder, {**result, **{key: value for key, value in told.items() if value is not None}})
        self.names.append(folder.name)

    def table(self) -> str:
        write_sweep(self.output, "main", self.names, [])
        return sweep_table(self.output, "main")

    def rows(self) -> dict[str, list[str]]:
        """By label the cells of the section."""
        lines = self.table().partition(f"{TITLE}\n")[2].partition("\n\n")[0].splitlines()[3:]
        return {cells[0]: cells[1:] for cells in (re.split(r" {3,}", line.strip()) for line in lines)}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def training(steps_per_second: float, tokens: int, peak_memory_mb: int) -> dict[str, Any]:
    return {"steps_per_second": steps_per_second, "tokens": tokens, "peak_memory_mb": peak_memory_mb}


def test_needs_in_short_words_and_costs_as_means_over_seeds(world: World):
    world.cell("mdpo", 0, training=training(4.0, 1200, 900), needs=NEEDS, corruption="crop")
    world.cell("mdpo", 1, training=training(2.0, 1400, 1100), needs=NEEDS, corruption="crop")
    assert world.rows() == {"mdpo": ["chosen, chosen*, rejected", "3", "crop", "0.375", "1,300", "1,000"]}


def test_a_pass_without_gradient_a_distribution_and_statistics(world: World):
    needs = {
        "policy_with_gradient": ["chosen"],
        "policy_without_gradient": ["chosen_corrupt", "unmatched"],
        "reference": ["chosen"],
        "reference_distributions": ["chosen"],
        "corrupted_views": ["chosen_corrupt"],
        "statistics": {"inner/kto/z0": "somewhere.unmatched_kl", "kto/weight_scale": 1.0},
    }
    world.cell("both", training=training(0.5, 10, 7), needs=needs, corruption="blur")
    assert world.rows() == {"both": ["chosen, (chosen*, unmatched)", "1 kl", "blur, unmatched_kl", "2", "10", "7"]}


def test_a_loss_without_reference_and_an_old_result_show_dashes(world: World):
    alone = {**NEEDS, "policy_with_gradient": ["chosen"], "reference": [], "corrupted_views": []}
    world.cell("sft", training=training(4.0, 1200, 900), needs=alone, corruption="crop")
    world.cell("dpo", training=training(4.0, 1200, 900))
    world.cell("ipo", training=training(0.0, 1200, 900), needs=NEEDS)  # resumed after its last step: nothing was timed
    world.cell("kto")
    assert world.rows() == {
        "sft": ["chosen", "-", "-", "0.25", "1,200", "900"],
        "dpo": ["-", "-", "-", "0.25", "1,200", "900"],
        "ipo": ["chosen, chosen*, rejected", "3", "none", "-", "1,200", "900"],
    }


def test_cells_that_were_not_trained_make_no_section(world: World):
    world.cell("dpo")
    assert "needed and cost" not in world.table()


def test_costs_stand_in_the_csv(world: World):
    world.cell("mdpo", 0, training=training(4.0, 1200, 900), needs=NEEDS)
    world.cell("mdpo", 1, training=training(2.0, 1400, 1100), needs=NEEDS)
    world.table()
    with (world.output / "sweeps/main/table.csv").open(newline="") as stream:
        lines = [line for line in csv.DictReader(stream) if line["kind"] == "cost"]
    found = {line["measure"]: (line["row"], float(line["mean"]), line["num_seeds"]) for line in lines}
    assert found == {
        "seconds_per_step": ("mdpo", 0.375, "2"),
        "tokens": ("mdpo", 1300.0, "2"),
        "peak_memory_mb": ("mdpo", 1000.0, "2"),
    }


def test_the_whole_catalogue_fits_on_a_terminal_unbroken(world: World):
    for name, loss in catalogue().items():
        needs = needs_of(build_objective(loss.node, batch_size=8))
        world.cell(name, training=training(0.0123, 12_345_678, 12_345), needs=needs, corruption=loss.corruption)
    assert list(world.rows()) == list(catalogue())
    section = world.table().partition(f"{TITLE}\n")[2].partition("\n\n")[0]
    assert max(map(len, section.splitlines())) <= WIDTH
