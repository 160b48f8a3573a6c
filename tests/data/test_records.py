import pytest

from medvlm_dpo.data.records import BadRecord, Flaw, apply_policy, printable, reason_of, validate_settings
from medvlm_dpo.errors import InputError

FLAWS = [Flaw("the answer is empty"), Flaw("the image is missing", "p1/secret.png")]


def bad(count: int) -> list[BadRecord]:
    return [BadRecord("the answer is empty", str(number), "pairs.json", f"record {number}") for number in range(1, count + 1)]


def test_details_are_shown_unless_credentialed() -> None:
    assert reason_of(FLAWS, "public") == "the answer is empty; the image is missing (p1/secret.png)"
    assert reason_of(FLAWS, "research") == reason_of(FLAWS, "public")
    assert reason_of(FLAWS, "credentialed") == "the answer is empty; the image is missing"


def test_a_bad_record_names_file_place_and_id() -> None:
    assert str(bad(1)[0]) == "pairs.json, record 1, id 1: the answer is empty"
    assert str(BadRecord("too long", None, "q.jsonl", "line 7")) == "q.jsonl, line 7, no id: too long"
    assert str(BadRecord("too long", "x")) == "id x: too long"


def test_content_is_made_fit_for_a_terminal() -> None:
    assert "\x1b" not in printable("\x1b[2Jgone\n")
    assert len(printable("x" * 1000)) == 120


def test_error_shows_the_count_and_the_first_20() -> None:
    with pytest.raises(InputError, match=r"25 of 100 records are bad.*data\.on_bad_record=drop.*The first 20:") as caught:
        apply_policy(bad(25), "error", 100, "public")
    assert caught.value.problems[1:] == tuple(str(record) for record in bad(20))


def test_drop_returns_them_all() -> None:
    assert apply_policy(bad(25), "drop", 100, "public") == tuple(bad(25))
    assert apply_policy([], "error", 100, "public") == ()


def test_drop_refuses_to_leave_nothing() -> None:
    with pytest.raises(InputError, match="All 3 records are bad"):
        apply_policy(bad(3), "drop", 3, "public")


def test_questions_name_their_own_setting() -> None:
    with pytest.raises(InputError, match=r"evaluation\.on_bad_record=drop"):
        apply_policy(bad(1), "error", 2, "public", group="evaluation")


def test_both_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        validate_settings("publik", "drp")
    assert len(caught.value.problems) == 2
    assert "data.data_class: 'publik'" in caught.value.problems[0]
    assert "did you mean public?" in caught.value.problems[0]
    assert "data.on_bad_record: 'drp' is no policy for bad records; did you mean drop?" in caught.value.problems[1]
