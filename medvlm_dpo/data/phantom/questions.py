"""From facts to questions: what may be asked about a scene, the true answer, and answers with one fact changed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medvlm_dpo.data.phantom.anatomy import ERROR_TYPES, MODALITIES, REGIONS, SIDES, SIZES, ZONES, Scene
from medvlm_dpo.data.phantom.draws import chance, pick, shuffled, stream
from medvlm_dpo.data.phantom.findings import COUNT_WORDS, Findings, changed_findings, findings_of

QUESTIONS_PER_IMAGE = 4


@dataclass(frozen=True)
class Wrong:
    """A wrong answer that differs from the truth in one fact of this error type."""

    error_type: str
    answer: str


@dataclass(frozen=True)
class Asked:
    """One question about one picture.

    Args:
        error_type: the kind of fact asked for; `findings` where the answer states several.
        answer_type: open or closed.
        options: every admissible answer of a closed question that is not yes/no.
        wrong: answers with exactly one fact changed.
    """

    error_type: str
    answer_type: str
    text: str
    answer: str
    options: tuple[str, ...]
    wrong: tuple[Wrong, ...]


Kind = Callable[[Scene, np.random.Generator], Asked]


def questions_of(scene: Scene) -> tuple[Asked, ...]:
    """The questions of one picture, `QUESTIONS_PER_IMAGE` of different error types: a pure function of the scene."""
    random = stream(scene.split, scene.index, "questions")
    topics = shuffled(random, sorted(topic for topic in KINDS if _can_ask(scene, topic)))
    if chance(random, 0.6):  # few pictures allow a question about the zone, so those that do are asked it more often
        topics.sort(key="location".__ne__)
    if chance(random, 0.5):  # findings are long: ask for them in half of the pictures
        topics.sort(key="findings".__eq__)
    return tuple(_ask(scene, topic, random) for topic in topics[:QUESTIONS_PER_IMAGE])


def every_question(scene: Scene, random: np.random.Generator) -> tuple[Asked, ...]:
    """One question of every topic that fits the scene, with phrasing and claims drawn from `random`: for pretraining."""
    return tuple(_ask(scene, topic, random) for topic in KINDS if _can_ask(scene, topic))


def _can_ask(scene: Scene, topic: str) -> bool:
    """Where and how large a lesion is can be asked only when there is one; a heart only when it is in the picture."""
    needed = {"laterality": 1, "location": 1, "size": 1}.get(topic, 0)
    if topic == "location":
        return len(scene.lesions) == 1
    return len(scene.lesions) >= needed and (topic != "heart" or scene.heart_enlarged is not None)


def _ask(scene: Scene, topic: str, random: np.random.Generator) -> Asked:
    return pick(random, KINDS[topic])(scene, random)


# --- the three forms of a question -----------------------------------------------------------------------------------


def _value(error_type: str, texts: Sequence[str], form: str, truth: str, values: Sequence[str]) -> Kind:
    """An open question whose answer is one value, in words of a fixed form."""

    def ask(_: Scene, random: np.random.Generator) -> Asked:
        wrong = tuple(Wrong(error_type, form.format(value)) for value in values if value != truth)
        return Asked(error_type, "open", pick(random, texts), form.format(truth), (), wrong)

    return ask


def _claim(error_type: str, texts: Sequence[str], truth: str, values: Sequence[str]) -> Kind:
    """A yes/no question about one value, true in half of the cases."""

    def ask(_: Scene, random: np.random.Generator) -> Asked:
        holds = chance(random, 0.5)
        claimed = truth if holds else pick(random, [value for value in values if value != truth])
        return _yes_no(error_type, pick(random, texts).format(claimed), holds=holds)

    return ask


def _choice(error_type: str, texts: Sequence[str], truth: str, values: Sequence[str]) -> Kind:
    """A closed question that names the true value and another one, in random order."""

    def ask(_: Scene, random: np.random.Generator) -> Asked:
        other = pick(random, [value for value in values if value != truth])
        options = tuple(shuffled(random, (truth, other)))
        return Asked(error_type, "closed", pick(random, texts).format(*options), truth, options, (Wrong(error_type, other),))

    return ask


def _yes_no(error_type: str, text: str, *, holds: bool) -> Asked:
    answer, other = ("yes", "no") if holds else ("no", "yes")
    return Asked(error_type, "closed", text, answer, (), (Wrong(error_type, other),))


# --- topics ----------------------------------------------------------------------------------------------------------


def _modality_open(scene: Scene, random: np.random.Generator) -> Asked:
    texts = ("What imaging modality is this?", "Which modality was used?", "How was this picture taken?")
    return _value("modality", texts, "{}", scene.modality, MODALITIES)(scene, random)


def _modality_sentence(scene: Scene, random: np.random.Generator) -> Asked:
    texts = ("State the modality in one sentence.",)
    return _value("modality", texts, "The modality is {}.", scene.modality, MODALITIES)(scene, random)


def _modality_claim(scene: Scene, random: np.random.Generator) -> Asked:
    return _claim("modality", ("Is the modality {}?", "Does this picture come from {}?"), scene.modality, MODALITIES)(scene, random)


def _modality_choice(scene: Scene, random: np.random.Generator) -> Asked:
    return _choice("modality", ("Which modality is it: {} or {}?",), scene.modality, MODALITIES)(scene, random)


def _anatomy_open(scene: Scene, random: np.random.Generator) -> Asked:
    texts = ("Which body region is shown?", "What part of the body is this?")
    return _value("anatomy", texts, "{}", scene.region, tuple(REGIONS))(scene, random)


def _anatomy_sentence(scene: Scene, random: np.random.Generator) -> Asked:
    values = tuple(region.organs for region in REGIONS.values())
    texts = ("Name the paired organ in one sentence.",)
    return _value("anatomy", texts, "The image shows the {}.", REGIONS[scene.region].organs, values)(scene, random)


def _anatomy_claim(scene: Scene, random: np.random.Generator) -> Asked:
    return _claim("anatomy", ("Does this image show the {}?", "Is the {} shown?"), scene.region, tuple(REGIONS))(scene, random)


def _anatomy_choice(scene: Scene, random: np.random.Generator) -> Asked:
    values = tuple(region.organs for region in REGIONS.values())
    return _choice("anatomy", ("Does it show {} or {}?",), REGIONS[scene.region].organs, values)(scene, random)


def _side_open(scene: Scene, random: np.random.Generator) -> Asked:
    texts = ("Which side is affected?", "On which side is the abnormality?")
    return _value("laterality", texts, "{}", str(scene.side), (*SIDES, "both"))(scene, random)


def _side_sentence(scene: Scene, random: np.random.Generator) -> Asked:
    texts = (f"State in one sentence which of the {REGIONS[scene.region].organs} is affected.",)
    return _value("laterality", texts, "The affected side is {}.", str(scene.side), (*SIDES, "both"))(scene, random)


def _side_claim(scene: Scene, random: np.random.Generator) -> Asked:
    side = pick(random, SIDES)
    text = pick(random, ("Is there a lesion on the {} side?", "Is the {} side affected?")).format(side)
    return _yes_no("laterality", text, holds=any(lesion.side == side for lesion in scene.lesions))


def _zone_open(scene: Scene, random: np.random.Generator) -> Asked:
    texts = ("Which zone contains the lesion?", "In what zone is the lesion?")
    return _value("location", texts, "{}", scene.lesions[0].zone, ZONES)(scene, random)


def _zone_of_side(scene: Scene, random: np.random.Generator) -> Asked:
    lesion = scene.lesions[0]
    texts = ("Where exactly is the lesion?",)
    asked = _value("location", texts, f"{lesion.side} {{}}", lesion.zone, ZONES)(scene, random)
    mirrored = Wrong("laterality", f"{SIDES[1 - SIDES.index(lesion.side)]} {lesion.zone}")
    return Asked("location", "open", asked.text, asked.answer, (), (*asked.wrong, mirrored))


def _zone_claim(scene: Scene, random: np.random.Generator) -> Asked:
    return _claim("location", ("Is the lesion in the {} zone?",), scene.lesions[0].zone, ZONES)(scene, random)


def _zone_choice(scene: Scene, random: np.random.Generator) -> Asked:
    return _choice("location", ("Is the lesion in the zone called {} or {}?",), scene.lesions[0].zone, ZONES)(scene, random)


def _presence_claim(scene: Scene, random: np.random.Generator) -> Asked:
    texts = ("Is there a lesion?", "Is any abnormality visible?", "Does the image show a lesion?")
    return _yes_no("presence", pick(random, texts), holds=bool(scene.lesions))


def _presence_normal(scene: Scene, random: np.random.Generator) -> Asked:
    organs = REGIONS[scene.region].organs
    texts = ("Is this image normal?", f"Are the {organs} free of lesions?")
    return _yes_no("presence", pick(random, texts), holds=not scene.lesions)


def _presence_sentence(scene: Scene, random: np.random.Generator) -> Asked:
    values = ("No lesion is seen.", "A lesion is seen.")
    return _value("presence", ("State in one sentence whether a lesion is seen.",), "{}", values[bool(scene.lesions)], values)(
        scene, random
    )


def _size_open(scene: Scene, random: np.random.Generator) -> Asked:
    texts = ("How large is the lesion?", "What is the size of the abnormality?")
    return _value("size", texts, "{}", str(scene.size), SIZES)(scene, random)


def _size_claim(scene: Scene, random: np.random.Generator) -> Asked:
    return _claim("size", ("Is the abnormality {}?", "Is the size of the lesion {}?"), str(scene.size), SIZES)(scene, random)


def _size_choice(scene: Scene, random: np.random.Generator) -> Asked:
    return _choice("size", ("Is the lesion {} or {}?",), str(scene.size), SIZES)(scene, random)


def _heart_claim(scene: Scene, random: np.random.Generator) -> Asked:
    return _yes_no("size", pick(random, ("Is the heart enlarged?", "Is there cardiomegaly?")), holds=bool(scene.heart_enlarged))


def _heart_open(scene: Scene, random: np.random.Generator) -> Asked:
    values = ("normal", "enlarged")
    return _value("size", ("What is the size of the heart?",), "{}", values[bool(scene.heart_enlarged)], values)(scene, random)


def _count_open(scene: Scene, random: np.random.Generator) -> Asked:
    texts = ("How many lesions are there?", "What is the number of lesions?")
    return _value("count", texts, "{}", COUNT_WORDS[len(scene.lesions)], COUNT_WORDS)(scene, random)


def _count_claim(scene: Scene, random: np.random.Generator) -> Asked:
    text = pick(random, ("Is there more than one lesion?", "Are there several lesions?"))
    return _yes_no("count", text, holds=len(scene.lesions) > 1)


def _count_choice(scene: Scene, random: np.random.Generator) -> Asked:
    return _choice("count", ("Is the number of lesions {} or {}?",), COUNT_WORDS[len(scene.lesions)], COUNT_WORDS)(scene, random)


def _describe(texts: Sequence[str], say: Callable[[Findings], str]) -> Kind:
    """A findings text: one sentence or two that state several facts."""

    def ask(scene: Scene, random: np.random.Generator) -> Asked:
        truth = findings_of(scene)
        wrong = tuple(Wrong(error_type, say(findings)) for error_type, findings in changed_findings(truth))
        said = say(truth)
        return Asked("findings", "open", pick(random, texts), said, (), tuple(item for item in wrong if item.answer != said))

    return ask


KINDS: dict[str, tuple[Kind, ...]] = {
    "modality": (_modality_open, _modality_sentence, _modality_claim, _modality_choice),
    "anatomy": (_anatomy_open, _anatomy_sentence, _anatomy_claim, _anatomy_choice),
    "laterality": (_side_open, _side_sentence, _side_claim),
    "location": (_zone_open, _zone_of_side, _zone_claim, _zone_choice),
    "presence": (_presence_claim, _presence_normal, _presence_sentence),
    "size": (_size_open, _size_claim, _size_choice),
    "heart": (_heart_claim, _heart_open),
    "count": (_count_open, _count_claim, _count_choice),
    "findings": (
        _describe(("Describe the findings.", "What are the findings?"), Findings.sentence),
        _describe(("Write a short report.",), Findings.report),
    ),
}
QUESTION_TYPES = (*ERROR_TYPES, "findings")
