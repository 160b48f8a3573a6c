"""Questions and pairs: answers agree with the scene, wrong answers are wrong in exactly one fact."""

import re
from collections.abc import Iterator

import numpy as np
import pytest

from medvlm_dpo.data.phantom.anatomy import ERROR_TYPES, MODALITIES, REGIONS, SIZES, ZONES, Scene, scene_of
from medvlm_dpo.data.phantom.findings import COUNT_WORDS
from medvlm_dpo.data.phantom.pairs import PhantomImage, single_fact_pair
from medvlm_dpo.data.phantom.questions import KINDS, QUESTION_TYPES, QUESTIONS_PER_IMAGE, Asked, every_question, questions_of

COUNTS = {"no": 0, **{word: number for number, word in enumerate(COUNT_WORDS) if number}}
LESION_SENTENCE = re.compile(
    r"^(?:(?P<modality>\w+) of the (?P<region>\w+)\. )?(?P<count>No|One|Two|Three)(?: (?P<size>small|medium|large))? lesions? in "
    r"(?:the (?P<zone>upper|middle|lower) zone of )?(?:the (?P<side>right|left) (?P<organ>\w+)|(?P<both>both|the) (?P<organs>\w+))\.$"
)


def _asked(number: int = 250) -> Iterator[tuple[Scene, Asked]]:
    for index in range(number):
        scene = scene_of("train", index)
        random = np.random.default_rng(index)
        for asked in (*questions_of(scene), *every_question(scene, random)):
            yield scene, asked


def _facts(text: str) -> dict[str, str | int | None]:
    """The facts a findings text states, by error type; the organ stands for the anatomy."""
    match = LESION_SENTENCE.match(text)
    assert match, text
    count = COUNTS[match["count"].lower()]
    organ = match["organ"] or match["organs"].removesuffix("s")
    if match["region"]:
        assert REGIONS[match["region"]].organ == organ, text
    return {
        "modality": match["modality"],
        "anatomy": organ,
        "count": count,
        "size": match["size"],
        "laterality": match["side"] or ("both" if count else None),
        "location": match["zone"],
        "presence": bool(count),
    }


def test_each_picture_has_its_questions_of_distinct_topics() -> None:
    for index in range(100):
        questions = questions_of(scene_of("test", index))
        assert questions == questions_of(scene_of("test", index))
        assert len({asked.text for asked in questions}) == QUESTIONS_PER_IMAGE


def test_all_types_forms_and_phrasings_occur() -> None:
    asked = [item for _, item in _asked()]
    assert {item.error_type for item in asked} == set(QUESTION_TYPES)
    for error_type in ERROR_TYPES:
        assert {item.answer_type for item in asked if item.error_type == error_type} == {"open", "closed"}
        assert len({item.text for item in asked if item.error_type == error_type}) > 3
    lengths = np.array([len(item.answer.split()) for item in asked])
    assert (lengths <= 4).mean() > 0.6
    assert (lengths > 4).mean() > 0.1


def test_options_hold_the_answer_of_closed_questions_only() -> None:
    for _, asked in _asked():
        if asked.answer_type == "open" or asked.answer in ("yes", "no"):
            assert not asked.options
        else:
            assert asked.answer in asked.options
            assert len(set(asked.options)) == 2


def test_open_answers_agree_with_the_scene() -> None:
    for scene, asked in _asked():
        if asked.answer_type == "closed" or asked.error_type == "findings":
            continue
        truth = {
            "modality": scene.modality,
            "anatomy": (scene.region, REGIONS[scene.region].organs),
            "laterality": scene.side,
            "location": scene.lesions[0].zone if scene.lesions else "",
            "presence": "A lesion" if scene.lesions else "No lesion",
            "size": (str(scene.size), "enlarged" if scene.heart_enlarged else "normal"),
            "count": COUNT_WORDS[len(scene.lesions)],
        }[asked.error_type]
        values = truth if isinstance(truth, tuple) else (str(truth),)
        assert any(value in asked.answer for value in values), (asked, scene)


def test_yes_no_answers_agree_with_the_scene() -> None:
    for scene, asked in _asked():
        if asked.answer not in ("yes", "no"):
            continue
        assert (asked.answer == "yes") == _holds(scene, asked.text), (asked, scene)


def _holds(scene: Scene, text: str) -> bool:
    """An independent reading of every yes/no question."""
    words = text.rstrip("?").split()
    count = len(scene.lesions)
    sides = {lesion.side for lesion in scene.lesions}
    checks = [
        (any(word in MODALITIES for word in words), scene.modality in words),
        (any(word in REGIONS for word in words), scene.region in words),
        ("heart" in words or "cardiomegaly" in words, bool(scene.heart_enlarged)),
        ("side" in words, bool(sides & set(words))),
        (any(word in ZONES for word in words), count == 1 and scene.lesions[0].zone in words),
        (any(word in SIZES for word in words), scene.size in words),
        ("more" in words or "several" in words, count > 1),
        ("normal" in words or "free" in words, count == 0),
        (True, count > 0),
    ]
    return next(value for applies, value in checks if applies)


def test_findings_state_the_scene() -> None:
    for scene, asked in _asked():
        if asked.error_type != "findings":
            continue
        facts = _facts(asked.answer)
        assert facts["count"] == len(scene.lesions)
        assert (facts["size"], facts["laterality"]) == (scene.size, scene.side)
        assert facts["anatomy"] == REGIONS[scene.region].organ
        assert facts["modality"] in (None, scene.modality)
        assert facts["location"] == (scene.lesions[0].zone if len(scene.lesions) == 1 else None)


def test_findings_with_one_fact_changed_differ_in_that_fact_alone() -> None:
    seen: set[str] = set()
    for _, asked in _asked():
        if asked.error_type != "findings":
            continue
        truth = _facts(asked.answer)
        for wrong in asked.wrong:
            facts = _facts(wrong.answer)
            changed = {name for name in truth if truth[name] != facts[name]}
            # Whether there is a lesion decides what else can be stated about it.
            dependent = {"count", "size", "laterality", "location"} if wrong.error_type == "presence" else set()
            assert wrong.error_type in changed, (asked.answer, wrong)
            assert changed - dependent == {wrong.error_type}, (asked.answer, wrong)
            seen.add(wrong.error_type)
    assert seen == set(ERROR_TYPES)


def test_wrong_short_answers_are_other_values_of_the_same_form() -> None:
    for _, asked in _asked():
        assert asked.wrong
        for wrong in asked.wrong:
            assert wrong.answer != asked.answer
            if asked.error_type != "findings":
                assert wrong.answer.count(" ") in (asked.answer.count(" "), asked.answer.count(" ") - 1, asked.answer.count(" ") + 1)


@pytest.mark.parametrize("topic", sorted(KINDS))
def test_every_kind_of_a_topic_can_be_asked(topic: str) -> None:
    scene = next(
        scene
        for scene in (scene_of("train", index) for index in range(500))
        if scene.heart_enlarged is not None and len(scene.lesions) == 1
    )
    for kind in KINDS[topic]:
        assert kind(scene, np.random.default_rng(0)).text.endswith(("?", "."))


def test_single_fact_pair_takes_one_of_the_wrong_answers() -> None:
    kinds: set[str] = set()
    for index in range(200):
        image = PhantomImage("train", index)
        for question, asked in enumerate(questions_of(image.scene)):
            pair = single_fact_pair(image, question)
            assert pair.chosen == asked.answer
            assert (pair.error_type, pair.rejected) in {(wrong.error_type, wrong.answer) for wrong in asked.wrong}
            assert pair.extra["lesion_boxes"] == [list(lesion.box) for lesion in image.scene.lesions]
            kinds.add(str(pair.error_type))
    assert kinds == set(ERROR_TYPES)
