"""`llava_med_official`: the rules LLaVA-Med published, quirks included, for numbers comparable with that line of work.

Rules: https://github.com/microsoft/LLaVA-Med, tag v1.0.0, `llava/eval/run_eval.py` and `llava/eval/eval_metrics` (normalisation after
the VQA evaluation, https://visualqa.org/evaluation.html). Written from a description of the rules. The quirks are kept on purpose:

* a closed answer counts only if it contains the letters `yes` or `no` anywhere (`normal`, `nodule`, `not`), so that gold `CT` with
  answer `CT` scores 0, and `yes no` is right for both;
* a word of the gold answer that the answer repeats counts as often as the *answer* has it: for gold `lung nodule` the answer
  `lung lung lung` recalls 3 of 4 (0.75), not 1 of 2;
* a comma between digits anywhere makes every punctuation mark vanish instead of becoming a blank;
* at most 32 full stops go (upstream passes a flag where the count belongs), and a stop before a digit stays.
"""

import re
from collections import Counter

from medvlm_dpo.evaluation.graders.base import Grade, Grader
from medvlm_dpo.vocab import Question

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = int(re.UNICODE)
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll
how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't
she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# The published table repairs a form that lacks exactly one of its apostrophes; one of its lines runs the other way round.
_CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    form[:place] + form[place + 1 :]: form for form in _CONTRACTED.split() for place, letter in enumerate(form) if letter == "'"
}


def grader() -> Grader:
    """Closed accuracy by the substring rule, open recall with the prediction-frequency quirk. Never None."""
    return Grader("llava_med_official", "1", _grade)


def normalised(text: str) -> str:
    """The published normalisation of one text, which is lower-cased first."""
    spaced = text = text.lower()
    vanish = _COMMA_BETWEEN_DIGITS.search(text) is not None
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text  # anywhere in the text, for every occurrence of the mark
        spaced = spaced.replace(mark, "" if vanish or beside_blank else " ")
    words = [_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", spaced, count=_MOST_FULL_STOPS).split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _grade(question: Question, answer: str) -> Grade:
    gold, given = normalised(question.answer), normalised(answer)
    if question.answer_type == "closed":
        return Grade("closed_accuracy", float(("yes" in given or "no" in given) and gold in given))
    # The published recall normalises both texts a second time; that matters only beyond the limit on full stops.
    return Grade("open_recall", _recall(normalised(gold).split(), normalised(given).split()))


def _recall(gold: list[str], given: list[str]) -> float:
    gold_counts, given_counts = Counter(gold), Counter(given)
    found = sum(given_counts[word] for word in gold_counts)
    missed = sum(count for word, count in gold_counts.items() if word not in given_counts)
    return found / (found + missed) if found else 0.0
