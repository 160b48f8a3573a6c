"""Losses in words: one text per loss on the terminal, and one page for all of them."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from launch.compose import compose_cells
from medvlm_dpo import describe as describing
from medvlm_dpo.config.catalogue import CatalogueLoss, catalogue, loss_names
from medvlm_dpo.describe import describe, main, page
from medvlm_dpo.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
DPO = {"_target_": "medvlm_dpo.objectives.contrastive.dpo", "_partial_": True, "beta": 0.1}
SFT = {"_target_": "medvlm_dpo.objectives.supervised.sft", "_partial_": True}
CARD = {
    "title": "A loss | of <this> test",
    "formula": "|a| * b",
    "evidence": "derived",
    "source": "arXiv 0000.00000, `x * y` and x * y",
    "settings": {"beta": "> 0, made up"},
    "deviations": ["It deviates.", "Twice."],
    "released": "there is none",
    "clamps": ["Nothing is clamped."],
    "pitfalls": ["It is a test."],
    "need_not_fall": "it is too short",
}
KTO = {
    "_target_": "medvlm_dpo.objectives.kto.kto",
    "beta": 0.1,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
    "unmatched_kl": {"_target_": "medvlm_dpo.objectives.statistics.unmatched_kl"},
}


def config(node: dict[str, Any], name: str = "mine", corruption: str = "crop") -> dict[str, Any]:
    return {
        "loss": node,
        "choices": {"loss": name, "corruption": corruption, "reference": "adapter_off"},
        "trainer": {"batch_size": 4},
    }


def entries(text: str) -> dict[str, str]:
    """By label, the words of a description, wrapped lines joined."""
    found: dict[str, list[str]] = {}
    label = ""
    for line in text.splitlines()[2:]:
        label = line[:13].strip() or label
        found.setdefault(label, []).append(line[13:].strip())
    return {label: " ".join(lines) for label, lines in found.items()}


def told(node: dict[str, Any], **given: Any) -> dict[str, str]:
    return entries(describe([config(node, **given)], width=110))


@pytest.fixture
def small_catalogue(monkeypatch: pytest.MonkeyPatch) -> dict[str, CatalogueLoss]:
    """A catalogue of three losses in place of the real one."""
    losses = {
        "both": CatalogueLoss({"terms": {"dpo": DPO, "nll": SFT}, "weights": {"dpo": 1, "nll": 0.5}}, "none", "adapter_off"),
        "kto": CatalogueLoss(KTO, "none", "moving"),
        "own": CatalogueLoss({**DPO, "card": CARD}, "none", "adapter_off"),
    }
    monkeypatch.setattr(describing, "catalogue", lambda: losses)
    return losses


# --- the terminal -------------------------------------------------------------------------------------------------------


def test_a_card_is_told_whole():
    text = describe([config({**DPO, "card": CARD})], width=110)
    assert text.startswith("mine: A loss | of <this> test\n---")
    assert entries(text) == {
        "formula": "|a| * b",
        "source": "arXiv 0000.00000, `x * y` and x * y evidence: derived; paper text not consulted",
        "needs": "policy, with gradient: chosen, rejected reference=adapter_off: chosen, rejected every example with a chosen and a "
        "rejected answer answers scored per example: 2 with gradient, 0 without, 2 by the reference; 1 times the work of dpo, "
        "counting an answer with gradient as 3 and any other as 1",
        "settings": "beta = 0.1: > 0, made up",
        "deviations": "It deviates. Twice.",
        "see also": "there is none",
        "clamps": "Nothing is clamped.",
        "pitfalls": "It is a test.",
        "in training": "need not fall within a few steps: it is too short",
    }


@pytest.mark.parametrize(("evidence", "says"), [("paper", False), ("official code", True), ("derived", True)])
def test_only_a_formula_of_the_paper_goes_without_the_reservation(evidence: str, says: bool):
    source = told({**DPO, "card": {**CARD, "evidence": evidence}})["source"]
    assert f"evidence: {evidence}" in source
    assert ("paper text not consulted" in source) is says


def test_a_loss_without_card_is_told_by_its_docstring():
    text = describe([config(DPO)], width=110)
    assert text.startswith("mine: Direct preference optimisation: `-log sigmoid(beta *")
    words = entries(text)
    assert "Source: https://arxiv.org/abs/2305.18290" in words["in words"]
    assert "Args:" not in words["in words"]
    assert "strength of the pull to the reference" not in words["in words"]
    assert words["source"] == "its yaml has no card"
    assert words["settings"] == "beta = 0.1"


def test_terms_of_nested_sums_with_their_weights_formulas_and_settings():
    inner = {"terms": {"dpo": {**DPO, "card": CARD}, "nll": SFT}, "weights": {"dpo": 2.0, "nll": 0.5}}
    words = told({"terms": {"inner": inner, "gone": DPO}, "weights": {"inner": 3.0, "gone": 0}})
    assert words["formula"] == "6 x inner/dpo + 1.5 x inner/nll"
    assert words["terms"].startswith("6 x inner/dpo: |a| * b [beta 0.1] 1.5 x inner/nll: Supervised fine-tuning")
    assert "gone" not in words["terms"]
    assert words["left out"] == "gone, whose weight is 0"


def test_a_term_left_out_of_a_nested_sum_is_told_beside_the_formula_of_the_card():
    inner = {"terms": {"dpo": DPO, "nll": SFT}, "weights": {"dpo": 2.0, "nll": 0.0}}
    words = told({"terms": {"inner": inner}, "weights": {"inner": 3.0}, "card": CARD})
    assert words["formula"] == "|a| * b"
    assert words["left out"] == "inner/nll, whose weight is 0"
    assert "left out" not in told({"terms": {"nll": SFT}, "weights": {"nll": 1.0}, "card": CARD})


def test_a_sum_with_a_card_says_what_it_shares_and_what_the_card_adds():
    node = {"beta": 0.1, "terms": {"dpo": DPO}, "weights": {"dpo": 0.25}}
    card = {**CARD, "settings": {"beta": "shared", "weights.dpo": "of the only term", "seed": "unheard of"}}
    words = told({**node, "card": card})
    assert words["formula"] == "|a| * b"
    assert words["settings"] == "beta = 0.1: shared weights.dpo = 0.25: of the only term seed: unheard of"


@pytest.mark.parametrize(
    ("overrides", "formula"),
    [
        (["loss.weights.anchor=0"], "1 x dpo + 1 x copo"),
        (["loss.weights.copo=0.5"], "1 x dpo + 0.5 x copo + 1 x anchor"),
        (["+loss@loss.terms.sft=sft", "+loss.weights.sft=0.1"], "1 x dpo + 1 x copo + 1 x anchor + 0.1 x sft"),
        (["loss.terms.dpo.beta=0.3"], "1 x dpo + 1 x copo + 1 x anchor"),
        (["loss.terms.anchor.margin=1"], "1 x dpo + 1 x copo + 1 x anchor"),
    ],
)
def test_a_command_that_changes_a_sum_is_told_what_it_trains(overrides: list[str], formula: str):
    words = entries(describe(compose_cells(["loss=mdpo", *overrides]), width=200))
    assert words["formula"] == formula
    shipped = "-LS(beta h) - LS(beta (a - c)) - LS(beta a)"
    assert words["changed"] == f"by the command; the card below is of mdpo as it ships: {shipped}"


@pytest.mark.parametrize("override", ["loss.beta=0.3", "seed=1", "corruption=blur"])
def test_settings_leave_the_formula_of_the_card(override: str):
    words = entries(describe(compose_cells(["loss=mdpo", override]), width=200))
    assert words["formula"] == "-LS(beta h) - LS(beta (a - c)) - LS(beta a)"
    assert "changed" not in words


def test_the_released_behaviour_is_named_with_its_title_and_the_corruption_with_its_settings():
    words = entries(describe(compose_cells(["loss=mdpo"]), width=200))
    assert words["see also"] == "mdpo_released: mDPO as released with the medical benchmark"
    assert "corruption=crop (seed 0, min_area_fraction 0.01, max_area_fraction 0.2): chosen_corrupt" in words["needs"]
    assert "* **see also**: mdpo_released: mDPO as released with the medical benchmark" in page()


def test_statistics_and_what_they_cost():
    words = told(KTO, corruption="none")
    assert "policy, without gradient: unmatched" in words["needs"]
    assert "statistic unmatched_kl: medvlm_dpo.objectives.statistics.unmatched_kl, over the global batch" in words["needs"]
    assert "examples may lack one of their two answers" in words["needs"]
    assert "with several micro-batches per step 1 once more, without gradient (unmatched)" in words["needs"]
    assert "unmatched_kl = unmatched_kl()" in words["settings"]
    fixed = told({**KTO, "unmatched_kl": 0.25})
    assert "statistic unmatched_kl: fixed at 0.25" in fixed["needs"]
    assert "once more" not in fixed["needs"]


USER_LOSS = '''
"""Losses that read more than log-probabilities."""
from vocabulary import ObjectiveOutput, PerExample


def far(policy_chosen_logps: PerExample, policy_rejected_forward_kl: PerExample, policy_chosen_image_kl: PerExample,
        pair_weight: PerExample) -> ObjectiveOutput:
    """Reads distributions."""
    return ObjectiveOutput((policy_rejected_forward_kl - policy_chosen_logps + policy_chosen_image_kl) * pair_weight, {})
'''.replace("vocabulary", "medvlm_dpo.vocab")


def test_distributions_corrupted_images_and_facts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "loss_of_test_describe.py").write_text(USER_LOSS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    needs = told({"_target_": "loss_of_test_describe.far"}, corruption="blur")["needs"]
    assert "the reference's whole distribution, from its hidden states: rejected" in needs
    assert "a corrupted image, corruption=blur: chosen_corrupt" in needs
    assert "image_kl: KL divergence from the true image's distribution" in needs
    assert "pair_weight: weight of the pair in its record" in needs
    assert "policy, without gradient: chosen_corrupt" in needs


def test_a_function_without_card_and_docstring_has_a_heading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bare = re.sub(r'\n    """.*?"""', "", USER_LOSS)
    (tmp_path / "bare_loss_of_test_describe.py").write_text(bare, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    text = describe([config({"_target_": "bare_loss_of_test_describe.far"})], width=80)
    assert text.startswith("mine: a function without a docstring\n---")


def test_without_a_reference():
    needs = told(SFT)["needs"]
    assert "no reference every example with a chosen answer" in needs


def test_several_losses_each_once():
    configs = [config(DPO, "dpo"), config(SFT, "sft"), config(DPO, "dpo"), config({**DPO, "beta": 0.3}, "dpo")]
    headings = re.findall(r"^(\w+): ", describe(configs, width=80), flags=re.MULTILINE)
    assert headings == ["dpo", "sft", "dpo"]


def test_lines_keep_to_the_width():
    text = describe([config({**DPO, "card": CARD}), config(KTO)], width=70)
    assert max(map(len, text.splitlines())) <= 70


def test_all_problems_come_together():
    with pytest.raises(InputError) as caught:
        describe([config({**DPO, "beta": -1}), config({**SFT, "colour": 1}), config({**DPO, "beta": -1})], width=80)
    assert caught.value.problems == ("loss.beta must be > 0, got -1", "loss.colour: sft takes no settings")
    with pytest.raises(InputError, match="at least 60 columns, got 20"):
        describe([config(DPO)], width=20)


# --- the page -----------------------------------------------------------------------------------------------------------


def test_the_page_counts_links_and_groups(small_catalogue: dict[str, CatalogueLoss]):
    text = page()
    assert "3 losses." in text
    assert "* 1 accept examples without a rejected answer: [kto](#kto)" in text
    assert "* 0 need no reference: none" in text
    headings = re.findall(r"^#{2,3} (.*)", text, flags=re.MULTILINE)
    assert headings[-6:] == ["Family contrastive", "own", "Family kto", "kto", "Family sums", "both"]
    assert "Losses on the difference of two log-ratios" in text


def test_the_page_says_what_its_statistics_are(small_catalogue: dict[str, CatalogueLoss]):
    text = page()
    assert "* `unmatched_kl`: KTO's z0: the mean log-ratio of answers that belong to other examples" in text
    assert "pair_kl" not in text


def test_the_table_of_the_page(small_catalogue: dict[str, CatalogueLoss]):
    rows = {line.split("]")[0][3:]: line for line in page().splitlines() if line.startswith("| [")}
    assert rows == {
        "both": "| [both](#both) | `1 x dpo + 0.5 x nll` | yes | adapter_off |  |  |  | 2 + 0 + 2 | 1 |",
        "kto": "| [kto](#kto) |  | may lack | moving |  | unmatched_kl |  | 2 + 1 + 3 \\* | 1.2 |",
        "own": "| [own](#own) | `\\|a\\| * b` | yes | adapter_off |  |  |  | 2 + 0 + 2 | 1 |",
    }


def test_signs_of_a_card_are_no_markdown(small_catalogue: dict[str, CatalogueLoss]):
    text = page()
    assert "A loss | of &lt;this> test" in text
    assert "arXiv 0000.00000, `x * y` and x \\* y" in text
    assert "* **formula**: `|a| * b`" in text
    small_catalogue["own"] = CatalogueLoss({**DPO, "card": {**CARD, "formula": "a every `n` steps"}}, "none", "adapter_off")
    assert "* **formula**: ``a every `n` steps``" in page()


def test_the_page_names_the_loss_that_cannot_be_built(small_catalogue: dict[str, CatalogueLoss], capsys: pytest.CaptureFixture[str]):
    small_catalogue["wrong"] = CatalogueLoss({**DPO, "beta": -1.0}, "none", "adapter_off")
    with pytest.raises(InputError, match=r"wrong: loss\.beta must be > 0, got -1"):
        page()
    assert main(["unwritten.md"]) == 2
    assert capsys.readouterr().err == "error: wrong: loss.beta must be > 0, got -1\n"


def test_the_command_writes_and_checks(small_catalogue: dict[str, CatalogueLoss], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "objectives.md"
    assert main(["--check", str(file)]) == 1
    assert not file.exists()
    assert capsys.readouterr().err == f"{file} is stale: run `make docs` and commit it\n"
    assert main([str(file)]) == 0
    assert file.read_text(encoding="utf-8") == page()
    assert main(["--check", str(file)]) == 0
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert main(["--check", str(file)]) == 1


# --- the real catalogue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", loss_names())
def test_every_setting_of_the_catalogue_has_words(name: str):
    loss = catalogue()[name]
    card = loss.node["card"]
    own = [key for key in loss.node if key not in ("_target_", "_partial_", "card", "terms", "weights")]
    assert [key for key in own if not card.get("settings", {}).get(key)] == []


@pytest.mark.parametrize("name", loss_names())
def test_what_a_card_has_words_for_is_there(name: str):
    loss = catalogue()[name]
    words = entries(describe([config(loss.node, name)], width=110))
    for key in loss.node["card"].get("settings", {}):
        assert f"{key} = " in words["settings"], key


def test_the_readme_names_every_loss_and_counts_them():
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## The losses\n")[2].partition("\n## ")[0]
    count = re.match(r"\s*There are (\d+) losses", section)
    assert count is not None
    assert int(count[1]) == len(loss_names())
    table = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert sorted(name for line in table for name in re.findall(r"`(\w+)`", line)) == loss_names()


def test_the_page_links_to_losses_it_has():
    text = page()
    assert set(re.findall(r"\]\(#(\w+)\)", text)) == set(loss_names())


def test_the_two_lines_on_the_page_join_a_lone_function_and_a_supervised_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = re.search(r"```yaml\n# (my_conf/loss/kto_sft\.yaml)\n(.*?)```\n\n```\npython run\.py (.*?)\n```", page(), flags=re.DOTALL)
    assert shown is not None
    file = tmp_path / shown[1]
    file.parent.mkdir(parents=True)
    file.write_text(shown[2], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = entries(describe(compose_cells(shlex.split(shown[3])), width=110))
    assert words["formula"] == "1 x kto + 0.1 x sft"
    assert "changed" not in words


def test_the_sum_on_the_page_composes_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = re.search(r"```yaml\n# my_conf/(\S+)\n(.*?)```", page(), flags=re.DOTALL)
    assert shown is not None
    (tmp_path / "my_conf/loss").mkdir(parents=True)
    (tmp_path / "my_conf" / shown[1]).write_text(shown[2], encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def words(*overrides: str) -> str:
        return describe(compose_cells(["--config-dir", "my_conf", "loss=anchored", *overrides]), width=110)

    assert entries(words())["formula"] == "1 x dpo + 0.5 x anchor + 0.2 x sft"
    assert words("loss.beta=0.3").count("[beta 0.3") == 2
    assert words("loss.terms.dpo.beta=0.3").count("[beta 0.3") == 1
    assert entries(words("loss.weights.sft=0"))["formula"] == "1 x dpo + 0.5 x anchor"


def test_the_command_on_the_page_adds_a_block():
    shown = re.search(r"```\npython run\.py (loss=mdpo .*)\n```", page())
    assert shown is not None
    assert "0.01 x perception: " in describe(compose_cells(shlex.split(shown[1])), width=110)
