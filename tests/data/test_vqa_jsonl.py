import json
from pathlib import Path
from typing import Any

import pytest

from medvlm_dpo.data.content import content_of
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.data.vqa_jsonl import VqaJsonl
from medvlm_dpo.errors import InputError
from medvlm_dpo.vocab import Turn


def row(id_: Any = 1, **changes: Any) -> dict[str, Any]:
    made = {"question_id": id_, "image": "0.png", "text": "Is it?\n<image>", "gpt4_answer": "yes", "answer_type": "CLOSED", **changes}
    return {key: value for key, value in made.items() if value is not ...}


def source(folder: Any, rows: list[Any], **settings: Any) -> VqaJsonl:
    path = folder.root / "test.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in rows), encoding="utf-8")
    return VqaJsonl(path=str(path), image_root=str(folder.root), **{"data_class": "public", **settings})


def test_the_layout(folder: Any) -> None:
    rows = [row(10, answer_type="CLOSED "), row("q2", text="<image>\nWhere?", gpt4_answer=" Left lung ", answer_type="OPEN", source="book")]
    report = source(folder, rows).read()
    first, second = report.questions
    assert (first.id, first.answer, first.answer_type, first.options) == ("10", "yes", "closed", ())
    assert first.turns == (Turn("human", "Is it?"),)
    assert (second.id, second.answer, second.answer_type, second.extra) == ("q2", "Left lung", "open", {"source": "book"})
    assert second.turns == (Turn("human", "Where?"),)
    assert first.image.key == "0.png"
    assert report.examples == {}
    assert report.num_records == 2


def test_an_error_type_is_read(folder: Any) -> None:
    assert source(folder, [row(error_type="presence")]).read().questions[0].error_type == "presence"


BAD = [
    ("text", r"test\.jsonl, line 2, no id: the row is a string; expected an object"),
    (row(...), r"line 2, no id: question_id is missing"),
    (row(2, image="no.png"), r"line 2, id 2: the image file is missing under the image root \(no\.png\)"),
    (row(2, image="../x.png"), "the image path leaves the image root"),
    (row(2, text=" <image> "), "text is empty"),
    (row(2, text="<image><image>Q"), "text holds <image> more than once"),
    (row(2, gpt4_answer="  "), "gpt4_answer is empty"),
    (row(2, gpt4_answer=3), "gpt4_answer is a number; expected a string"),
    (row(2, answer_type="yes/no"), r"answer_type must be OPEN or CLOSED \(yes/no\)"),
    (row(2, answer_type=...), "answer_type is missing"),
    (row(1, gpt4_answer="no"), "line 2, id 1: the id was already used by line 1 with other content"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_bad_row_is_named_and_can_be_dropped(folder: Any, bad: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"1 of 2 records are bad.*evaluation\.on_bad_record=drop[\s\S]*{message}"):
        source(folder, [row(1), bad]).read()
    report = source(folder, [row(1), bad], on_bad_record="drop").read()
    assert [question.id for question in report.questions] == ["1"]
    assert [record.place for record in report.dropped] == ["line 2"]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_messages_on_credentialed_data_hold_no_content(folder: Any, bad: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        source(folder, [row(1), bad], data_class="credentialed").read()
    for content in (".png", "yes/no", "Is it", "Q"):
        assert content not in str(caught.value)


def test_a_broken_line_names_line_and_column(folder: Any) -> None:
    made = source(folder, [row(1), row(2)])
    path = folder.root / "test.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match=r"test\.jsonl, line 2, column \d+: the JSON ends in the middle"):
        made.read()


def test_settings_name_the_evaluation(folder: Any) -> None:
    with pytest.raises(InputError) as caught:
        VqaJsonl(path=str(folder.root / "no"), image_root=str(folder.root / "0.pn"), data_class="", on_bad_record="?")
    assert len(caught.value.problems) == 4
    assert all(problem.startswith("evaluation.") for problem in caught.value.problems)


def test_content_follows_files_not_places(folder: Any, tmp_path: Path) -> None:
    made = source(folder, [row(1)])
    first = content_of(made, Manifest())
    moved = folder.root.rename(tmp_path / "elsewhere")
    again = VqaJsonl(path=str(moved / "test.jsonl"), image_root=str(moved), data_class="public")
    assert content_of(again, Manifest()) == first
    (moved / "0.png").write_bytes((moved / "1.png").read_bytes())
    assert content_of(again, Manifest()) != first
    assert set(again.input_files()) == {moved / "test.jsonl", moved / "0.png"}
