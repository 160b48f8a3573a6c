"""What cells will import is known before they are forked."""

from launch.tasks import targets_of


def test_targets_are_found_wherever_they_stand_and_once():
    config = {"model": {"_target_": "a.b", "part": [{"_target_": "c.d"}]}, "loss": {"terms": {"dpo": {"_target_": "a.b"}}}, "seed": 0}
    assert set(targets_of([config, config])) == {"a.b", "c.d"}
    assert len(targets_of([config])) == 2


def test_a_target_that_is_no_text_is_left_to_the_check():
    assert targets_of({"model": {"_target_": 3}}) == ()
