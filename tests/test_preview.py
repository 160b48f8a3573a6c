"""Contact sheets are complete, readable by any parser, and harmless whatever the records hold."""

import base64
import io
import json
import os
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from medvlm_dpo.data.corruption.base import corrupted_image
from medvlm_dpo.data.corruption.geometry import Crop
from medvlm_dpo.data.phantom.source import PhantomPairs
from medvlm_dpo.errors import InputError
from medvlm_dpo.preview import write_previews

CONF = Path(__file__).resolve().parents[1] / "conf"
PHANTOM = {
    "_target_": "medvlm_dpo.data.phantom.source.PhantomPairs",
    "data_class": "public",
    "num_pairs": 40,
    "num_validation_pairs": 10,
    "own_wrong_fraction": 0.0,
    "starting_model": None,
}
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Collects what a browser would show, and fails on tags that do not fit together."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def said(self, tag: str = "") -> str:
        return "".join(text for place, text in self.texts if place == tag or (not tag and place != "style"))

    def pictures(self) -> list[Image.Image]:
        sources = [str(attributes["src"]) for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


def config(folder: Path, *, data: dict[str, Any] = PHANTOM, corruption: str = "crop", **settings: Any) -> dict[str, Any]:
    node = yaml.safe_load((CONF / "corruption" / f"{corruption}.yaml").read_text(encoding="utf-8"))
    name = "phantom" if data is PHANTOM else "preference_json"
    return {
        "data": data,
        "corruption": {**node, **settings},
        "paths": {"output_dir": str(folder / "out")},
        "choices": {"data": name, "corruption": corruption},
    }


def previewed(config: dict[str, Any], num_pairs: int = 24, picture_side: int = 256) -> Reader:
    told = write_previews([config], num_pairs=num_pairs, picture_side=picture_side)
    return Reader(Path(told.partition(": ")[0]).read_text(encoding="utf-8"))


def user_data(folder: Path, records: list[dict[str, Any]], data_class: str = "research") -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 600, 3), dtype=np.uint8)).save(folder / "0.png")
    (folder / "pairs.json").write_text(json.dumps(records))
    return {
        "_target_": "medvlm_dpo.data.preference_json.PreferenceJson",
        "path": str(folder / "pairs.json"),
        "image_root": str(folder),
        "data_class": data_class,
    }


def record(id_: str, chosen: str, rejected: str | None, **more: Any) -> dict[str, Any]:
    def turns(answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": "<image>\nWhere <b>is</b> it?"}, {"from": "gpt", "value": answer}]

    made = {"id": id_, "image": "0.png", "conversations": turns(chosen), **more}
    return made if rejected is None else {**made, "rejected_conversations": turns(rejected)}


def test_the_sheet_shows_every_fact_of_evenly_spread_pairs(tmp_path: Path) -> None:
    told = write_previews([config(tmp_path)], num_pairs=10, picture_side=256)
    path = tmp_path / "out" / "previews" / "phantom-crop.html"
    assert told == f"{path}: 10 of 50 pairs"
    page = Reader(path.read_text(encoding="utf-8"))
    examples = PhantomPairs("public", 40, 10, 0.0, None).read().examples
    expected = [("train", example) for example in examples["train"]][::5] + [("validation", e) for e in examples["validation"]][::5]
    facts = [
        f"weight {example.pair_weight}, error type {example.error_type}, split {split}, id {example.id}" for split, example in expected
    ]
    assert [text for place, text in page.texts if place == "div" and text.strip()] == facts
    assert all(example.turns[0].text in page.said("p") for _, example in expected)
    pictures = page.pictures()
    assert len(pictures) == 20
    crop = Crop(seed=0, min_area_fraction=0.01, max_area_fraction=0.2)
    for (_, example), own, corrupted in zip(expected, pictures[::2], pictures[1::2], strict=True):
        assert own.tobytes() == example.image.load().tobytes()
        assert corrupted.tobytes() == corrupted_image(crop, example).load().tobytes()


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = previewed(config(tmp_path))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "a", "iframe"})
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert any("default-src 'none'" in str(attributes.get("content")) for tag, attributes in page.tags if tag == "meta")
    assert "url(" not in page.said("style")
    assert "must stay on this machine" not in page.said()
    assert "min_area_fraction 0.01" in page.said()


def test_all_pairs_are_shown_where_there_are_fewer_than_asked_for(tmp_path: Path) -> None:
    page = previewed(config(tmp_path, data={**PHANTOM, "num_pairs": 3, "num_validation_pairs": 0}), num_pairs=9)
    assert len(page.pictures()) == 6


def test_texts_are_escaped_and_the_data_class_is_told(tmp_path: Path) -> None:
    records = [record("<i>&1", "<script>left</script> lung", "right lung", error_type="<x>", weighted_score=0.5)]
    page = previewed(config(tmp_path, data=user_data(tmp_path, records)))
    assert {"script", "i", "x"}.isdisjoint({tag for tag, _ in page.tags})
    assert "<script>left</script>" in page.said("mark")
    assert "Where <b>is</b> it?" in page.said("p")
    assert "weight 0.5, error type <x>, split train, id <i>&1" in page.said("div")
    assert "data class research. It must stay on this machine." in page.said("p")


@pytest.mark.parametrize(("data_class", "mode"), [("public", 0o644), ("research", 0o600), ("credentialed", 0o600)])
def test_what_is_not_public_is_readable_by_its_owner_alone(tmp_path: Path, data_class: str, mode: int) -> None:
    path = tmp_path / "out" / "previews" / "preference_json-crop.html"
    path.parent.mkdir(parents=True)
    path.touch(mode=0o666)  # an older sheet that everybody may read
    before = os.umask(0o022)
    try:
        previewed(config(tmp_path, data=user_data(tmp_path, [record("a", "left", "right")], data_class)))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_words_that_differ_are_marked_and_no_others(tmp_path: Path) -> None:
    records = [record("a", "A small lesion\nin the left lung.", "A large lesion\nin the right upper lung.")]
    page = previewed(config(tmp_path, data=user_data(tmp_path, records)))
    assert [text for place, text in page.texts if place == "mark"] == ["small", "left", "large", "right", "upper"]
    assert "A small lesion\nin the left lung." in "".join(text for _, text in page.texts)


def test_a_record_with_one_answer_has_no_marks(tmp_path: Path) -> None:
    page = previewed(config(tmp_path, data=user_data(tmp_path, [record("a", "Left.", None)])))
    assert "mark" not in {tag for tag, _ in page.tags}
    assert "Left." in page.said("p")
    assert "(none)" in page.said("p")


def test_large_pictures_are_made_smaller_and_small_ones_stay(tmp_path: Path) -> None:
    page = previewed(config(tmp_path, data=user_data(tmp_path, [record("a", "Left.", "Right.")])), picture_side=100)
    assert [picture.size for picture in page.pictures()] == [(100, 50), (100, 50)]
    assert "picture, 600 x 300" in page.said("figcaption")
    assert "enlarged" not in {attributes.get("class") for _, attributes in page.tags}
    small = previewed(config(tmp_path), num_pairs=1, picture_side=100)
    assert [picture.size for picture in small.pictures()] == [(48, 48), (48, 48)]
    assert [attributes.get("class") for tag, attributes in small.tags if tag == "img"] == ["enlarged", "enlarged"]


def test_what_a_record_lacks_stands_where_its_picture_would(tmp_path: Path) -> None:
    records = [record("a", "Left.", "Right."), record("b", "Left.", "Right.", regions=[[0, 0, 9, 9]])]
    page = previewed(config(tmp_path, data=user_data(tmp_path, records), corruption="roi_noise"))
    assert len(page.pictures()) == 3
    assert "no corrupted picture: this record has neither regions nor a mask" in page.said("div")
    assert "1 of all 2 pairs lack what this corruption needs." in page.said("p")
    assert (tmp_path / "out" / "manifest.json").is_file()  # the pictures need not be checked again by a run


def test_a_picture_that_stays_as_it_is_is_told(tmp_path: Path) -> None:
    page = previewed(config(tmp_path, data=user_data(tmp_path, [record("a", "Left.", "Right.")]), corruption="file", missing="clean"))
    assert "corrupted: this picture stays as it is" in page.said("figcaption")


def test_without_corruption_there_is_one_picture_a_pair(tmp_path: Path) -> None:
    page = previewed(config(tmp_path, corruption="none"), num_pairs=2)
    assert len(page.pictures()) == 2
    assert "no corrupted picture: corruption=none" in page.said("div")
    assert "pictures are shown as they are" in page.said("p")


def test_configurations_that_show_the_same_share_a_file_and_others_get_their_own(tmp_path: Path) -> None:
    configs = [config(tmp_path), {**config(tmp_path), "seed": 1}, config(tmp_path, corruption="blank")]
    told = write_previews(configs, num_pairs=1, picture_side=64)
    assert [line.partition(": ")[0] for line in told.splitlines()] == [
        str(tmp_path / "out" / "previews" / name) for name in ("phantom-crop.html", "phantom-blank.html")
    ]


def test_two_sheets_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"phantom-crop\.html: two of the configurations write this file with other settings"):
        write_previews([config(tmp_path), config(tmp_path, seed=1)], num_pairs=1, picture_side=64)
    assert not (tmp_path / "out").exists()


def test_wrong_settings_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        write_previews([config(tmp_path)], num_pairs=0, picture_side=15)
    assert caught.value.problems == (
        "task.settings.num_pairs: expects at least 1, got 0",
        "task.settings.picture_side: expects at least 16, got 15",
    )
    with pytest.raises(InputError, match=r"corruption\.sed: Crop takes no 'sed'; did you mean seed\?"):
        write_previews([config(tmp_path, sed=1)], num_pairs=1, picture_side=64)


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    write_previews([config(tmp_path)], num_pairs=5, picture_side=64)
    path = tmp_path / "out" / "previews" / "phantom-crop.html"
    first = path.read_bytes()
    write_previews([config(tmp_path)], num_pairs=5, picture_side=64)
    assert path.read_bytes() == first
