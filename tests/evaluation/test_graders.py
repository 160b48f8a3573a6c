"""The graders against hand-derived numbers, and laws that hold for every text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medvlm_dpo.evaluation.graders import exact, llava_med_official, strict
from medvlm_dpo.evaluation.graders.words import words_of
from medvlm_dpo.vocab import Question

OFFICIAL, STRICT, EXACT = llava_med_official.grader(), strict.grader(), exact.grader()


class Picture:
    """A picture no grader may look at."""

    key = "picture"

    def load(self) -> Image.Image:
        raise AssertionError("graders use texts only")

    def content_hash(self) -> str:
        return "0" * 64


def question(gold: str, answer_type: str, options: tuple[str, ...] = ()) -> Question:
    return Question("q", Picture(), (), gold, answer_type, None, options)


def open_score(grader, gold, answer):
    grade = grader.grade(question(gold, "open"), answer)
    assert grade.metric == ("exact_match" if grader.name == "exact" else "open_recall")
    return grade.score


def closed_score(grader, gold, answer, options=()):
    grade = grader.grade(question(gold, "closed", tuple(options)), answer)
    assert grade.metric == ("exact_match" if grader.name == "exact" else "closed_accuracy")
    return grade.score


def test_names_and_versions():
    assert [(grader.name, grader.version) for grader in (OFFICIAL, STRICT, EXACT)] == [
        ("llava_med_official", "1"),
        ("strict", "1"),
        ("exact", "1"),
    ]


@pytest.mark.parametrize(
    ("gold", "answer", "official", "word_rule"),
    [
        ("yes", "yes", 1, 1),
        ("Yes", "YES.", 1, 1),
        ("yes", "no", 0, 0),
        ("yes", "yes no", 1, 0),  # naming both is right for both
        ("no", "yes no", 1, 0),
        ("no", "The heart is normal", 1, 0),  # `no` inside `normal`
        ("no", "Yes, there is a nodule", 1, 0),  # `no` inside `nodule`
        ("no", "It is not seen", 1, 0),  # `no` inside `not`
        ("no", "unknown", 1, 0),
        ("no", "none", 0, 0),  # becomes 0, which holds no `no`
        ("yes", "", 0, 0),
        ("yes", "Indeed", 0, 0),
        ("no", "No, no lesion.", 1, 1),
        ("no", "There is no lesion, yes?", 1, 0),
        ("yes", "eyes", 1, 0),  # `yes` inside `eyes`
    ],
)
def test_yes_no_questions(gold, answer, official, word_rule):
    assert closed_score(OFFICIAL, gold, answer) == official
    assert closed_score(STRICT, gold, answer) == word_rule


@pytest.mark.parametrize(
    ("gold", "options", "answer", "official", "phrase_rule"),
    [
        ("CT", ("CT", "MRI"), "CT", 0, 1),  # a perfect echo scores 0 officially: no `yes` or `no` in it
        ("CT", ("CT", "MRI"), "It is CT, not MRI", 1, 0),  # `no` inside `not`; strict hears both options
        ("CT", ("CT", "MRI"), "A CT scan.", 0, 1),
        ("CT", ("CT", "MRI"), "ectopic", 0, 0),
        ("CT", (), "normal ectopic", 1, 0),  # `ct` inside `ectopic`
        ("left", ("left", "right"), "left and right", 0, 0),
        ("left", ("left", "left upper lobe"), "left upper lobe", 0, 0),  # the longer option was named
        ("left upper lobe", ("left", "left upper lobe"), "the left upper lobe", 0, 1),
        ("left upper lobe", ("left", "left upper lobe"), "left, left upper lobe", 0, 0),
        ("PA", ("AP", "PA"), "ap", 0, 0),
        ("2", ("1", "2", "3"), "two", 0, 1),
    ],
)
def test_closed_questions_with_options(gold, options, answer, official, phrase_rule):
    assert closed_score(OFFICIAL, gold, answer, options) == official
    assert closed_score(STRICT, gold, answer, options) == phrase_rule


@pytest.mark.parametrize(
    ("gold", "answer", "official", "standard"),
    [
        ("lung nodule", "lung lung lung", 3 / 4, 1 / 2),  # 3 found by the answer's count, 1 missed
        ("lung nodule", "lung", 1 / 2, 1 / 2),
        ("lung nodule", "a nodule in the lung", 1, 1),
        ("lung lung nodule", "lung", 1 / 2, 1 / 3),  # gold repetition: found counts 1, missed 1; standard 1 of 3
        ("lung nodule nodule", "lung", 1 / 3, 1 / 3),  # a missed word counts as often as gold has it
        ("lung nodule", "", 0, 0),
        ("lung nodule", "heart", 0, 0),
        ("three", "3 lesions", 1, 1),
        ("none", "0", 1, 1),
        ("don't know", "dont know", 1, 1),
        ("right-sided", "right sided", 1, 1),
    ],
)
def test_open_questions(gold, answer, official, standard):
    assert open_score(OFFICIAL, gold, answer) == pytest.approx(official)
    assert open_score(STRICT, gold, answer) == pytest.approx(standard)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Left Lung.", "left lung"),
        ("x-ray", "x ray"),
        ("x-ray - frontal", "xray frontal"),  # a mark beside a blank vanishes everywhere in the text
        ("1,000 x-rays", "1000 xrays"),  # a comma between digits does the same to every mark
        ("1.5 cm.", "1.5 cm"),
        ("none, one, ten", "0 1 10"),
        ("it isnt", "it isn't"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),  # two apostrophes short: not in the published table
        ("an a the", ""),
        ("." * 40, "." * 8),  # at most 32 full stops go
    ],
)
def test_published_normalisation(text, expected):
    assert llava_med_official.normalised(text) == expected


def test_official_recall_normalises_twice():
    """Of 40 full stops 32 go the first time and the other 8 the second, so nothing is left to find."""
    assert open_score(OFFICIAL, "lung" + "." * 40, "lung") == 1.0


def test_official_gold_without_words():
    """The gold article vanishes; the empty text is a part of every answer, and an open gold without words recalls 0."""
    assert closed_score(OFFICIAL, "the", "no idea") == 1.0
    assert closed_score(OFFICIAL, "the", "idea") == 0.0
    assert open_score(OFFICIAL, "the", "the") == 0.0


def test_strict_recall_has_no_score_for_a_gold_without_words():
    assert open_score(STRICT, "?!", "lung") is None
    assert closed_score(STRICT, "?!", "?!") == 1.0


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("Chest X-ray", "chest x ray", 1),
        ("the left lung", "Left lung.", 1),
        ("left lung", "left lungs", 0),
        ("two", "2", 1),
        ("Crohn's disease", "Crohns disease", 1),
        ("hepatitis A", "hepatitis", 0),
        ("< 5 mm", "> 5 mm", 0),
        ("1.5 cm", "15 cm", 0),
        ("1,000", "1000", 1),
        ("L4,5", "L45", 0),
        ("-3", "3", 0),
        ("yes", "yes, there is", 0),
        ("?", "!", 0),
        ("?", " ? ", 1),
        ("", "lung", 0),
    ],
)
@pytest.mark.parametrize("kind", ["open", "closed"])
def test_exact_match(gold, answer, score, kind):
    assert EXACT.grade(question(gold, kind), answer) == ("exact_match", score)


def test_words():
    assert words_of("The X-ray of a 3.5 cm nodule; none (two)!") == ("x", "ray", "of", "3.5", "cm", "nodule", "0", "2")
    assert words_of("snake_case") == ("snake", "case")


TEXTS = st.text(max_size=40)
PLAIN = st.text(alphabet="abcno yes'-.,?<5AXÉ\n", max_size=30)


@given(TEXTS)
def test_a_perfect_echo_is_right(text):
    assert open_score(EXACT, text, text) == 1.0
    assert closed_score(STRICT, text, text, ("some option", text)) == 1.0
    assert open_score(STRICT, text, text) in (1.0, None)


@given(TEXTS, TEXTS, st.sampled_from(["open", "closed"]), st.lists(TEXTS, max_size=3))
def test_scores_lie_between_0_and_1(gold, answer, kind, options):
    for grader in (OFFICIAL, STRICT, EXACT):
        score = grader.grade(question(gold, kind, tuple(options)), answer).score
        assert score is None or 0 <= score <= 1


@given(PLAIN, PLAIN, st.sampled_from(["open", "closed"]))
def test_case_and_outer_blanks_do_not_count(gold, answer, kind):
    for grader in (STRICT, EXACT):
        plain = grader.grade(question(gold, kind), answer)
        assert grader.grade(question(gold, kind), f"  {answer.upper()}\n") == plain
        assert grader.grade(question(gold.upper(), kind), answer) == plain


@given(st.lists(st.sampled_from(["lung", "nodule", "left", "3"]), min_size=1), st.lists(st.sampled_from(["lung", "left", "mass"])))
def test_official_recall_is_never_below_the_standard_one_without_gold_repetition(gold, answer):
    """With every gold word once, counting the answer's repetitions can only add to what was found."""
    unique = " ".join(dict.fromkeys(gold))
    official, standard = (open_score(grader, unique, " ".join(answer)) for grader in (OFFICIAL, STRICT))
    assert official is not None
    assert standard is not None
    assert official >= standard - 1e-12
