import json
from pathlib import Path
from typing import Any

import pytest

from medvlm_dpo.data.json_records import Fields, read_records
from medvlm_dpo.errors import InputError


def written(tmp_path: Path, content: str | bytes, name: str = "pairs.json") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_list_object_and_lines(tmp_path: Path) -> None:
    assert [record.place for record in read_records(written(tmp_path, '[{"a": 1}, 2]'))] == ["record 1", "record 2"]
    assert [record.value for record in read_records(written(tmp_path, '{"a": 1}'))] == [{"a": 1}]
    lines = read_records(written(tmp_path, '{"a": 1}\r\n\n{"a": "\u2028"}\n', "q.jsonl"))
    assert [(record.place, record.value) for record in lines] == [("line 1", {"a": 1}), ("line 3", {"a": "\u2028"})]


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    assert len(read_records(written(tmp_path, b"\xef\xbb\xbf[1]"))) == 1


@pytest.mark.parametrize("keep", [10, 30, 45, 70])
def test_json_cut_in_the_middle_names_line_and_column(tmp_path: Path, keep: int) -> None:
    text = json.dumps([{"id": "a", "text": "some words here"}, {"id": "b", "text": "more words"}], indent=1)
    path = written(tmp_path, text[:keep])
    with pytest.raises(InputError, match=rf"{path}, line \d+, column \d+: the JSON ends in the middle; the file is cut off"):
        read_records(path)


def test_the_position_is_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 3, column 7: this is no JSON"):
        read_records(written(tmp_path, '[\n1,\n{"a": oops}]'))
    with pytest.raises(InputError, match=r"q\.jsonl, line 2, column 3: "):
        read_records(written(tmp_path, '{"a": 1}\n{ a\n', "q.jsonl"))


def test_all_broken_lines_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_records(written(tmp_path, '{"a": 1}\n' + "{oops\n" * 23, "q.jsonl"))
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1].endswith("and 3 more lines")


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (b"", "x.json", "the file is empty"),
        (b" \n\n", "x.jsonl", "the file is empty"),
        (b"[]", "x.json", "the file holds no records"),
        (b"3", "x.json", "expected a list of records, or one record, found a number"),
        (b"null", "x.json", "found null"),
        ("[\n 1]".encode("utf-16"), "x.json", r"line 1: the file is not UTF-8 \(byte 1\)"),
        (b'["a",\n"\xe4"]', "x.json", r"line 2: the file is not UTF-8 \(byte 8\); save it as UTF-8"),
        (b'{"a": 1}\n{"a": 2}\n', "x.json", r"line 2, column 1: a second JSON value follows the first.*name it \.jsonl"),
        (b"[" * 100_000, "x.json", "nested too deeply"),
        (b"[" + b"1" * 5_000 + b"]", "x.json", "too many digits"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_records(written(tmp_path, content, name))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a.png", "a.png"), (["a.png"], "a.png"), (" a.png ", "a.png"), (None, None), ([], None), (3, None), (["a", "b"], None)],
)
def test_image_is_a_path_or_a_list_of_one(value: Any, expected: str | None) -> None:
    fields = Fields({"image": value})
    assert fields.image("image") == expected
    assert len(fields.flaws) == (expected is None)


@pytest.mark.parametrize(("value", "expected"), [(0, 0.0), (0.5974, 0.5974), (3, 3.0), (None, None)])
def test_numbers(value: Any, expected: float | None) -> None:
    fields = Fields({"weighted_score": value})
    assert fields.number("weighted_score") == expected
    assert fields.flaws == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-0.1, "weighted_score must be a finite number of at least 0"),
        (float("nan"), "weighted_score must be a finite number"),
        (float("inf"), "weighted_score must be a finite number"),
        (10**400, "weighted_score must be a finite number"),
        (True, "weighted_score is true or false; expected a number"),
        ("0.5", "weighted_score is a string; expected a number"),
        ([0.5], "weighted_score is a list; expected a number"),
    ],
)
def test_wrong_numbers(value: Any, reason: str) -> None:
    fields = Fields({"weighted_score": value})
    assert fields.number("weighted_score") is None
    assert fields.flaws[0].reason.startswith(reason)


@pytest.mark.parametrize(
    ("value", "expected", "reason"),
    [
        (7, "7", None),
        (" x ", "x", None),
        (0, "0", None),
        (None, None, "id is missing; expected a string or a whole number"),
        ("", None, "id is missing"),
        (True, None, "id is true or false"),
        (1.5, None, "id is a number; expected a string or a whole number"),
        (["x"], None, "id is a list"),
    ],
)
def test_identifiers(value: Any, expected: str | None, reason: str | None) -> None:
    fields = Fields({"id": value})
    assert fields.identifier("id") == expected
    assert [flaw.reason.startswith(reason or "") for flaw in fields.flaws] == ([True] if reason else [])


def test_blank_text_is_a_flaw_unless_optional() -> None:
    fields = Fields({"a": "  ", "b": " ", "c": 3})
    assert [fields.text("a"), fields.text("b", required=False), fields.text("c"), fields.text("d")] == [None] * 4
    assert [flaw.reason for flaw in fields.flaws] == ["a is empty", "c is a number; expected a string", "d is missing; expected a string"]
