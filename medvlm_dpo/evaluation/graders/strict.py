"""`strict`: whole words only, and an answer that names two alternatives is wrong."""

from collections import Counter
from collections.abc import Sequence

from medvlm_dpo.evaluation.graders.base import Grade, Grader
from medvlm_dpo.evaluation.graders.words import same_text, words_of
from medvlm_dpo.vocab import Question

YES_NO = (("yes",), ("no",))


def grader() -> Grader:
    """Closed questions by whole words, open questions by token recall.

    * gold `yes` or `no`: exactly one of the two occurs as a word, and it is the gold one;
    * other closed gold: the gold phrase occurs as whole words and no other listed option does. At each word the longest option that
      fits is taken, so that `left upper lobe` does not also name `left`;
    * open: share of the gold words found in the answer, a repeated word counting as often as both sides have it. None if the gold
      answer holds no word.
    """
    return Grader("strict", "1", _grade)


def _grade(question: Question, answer: str) -> Grade:
    if question.answer_type == "closed":
        return Grade("closed_accuracy", float(_closed_is_right(question, answer)))
    return Grade("open_recall", _recall(words_of(question.answer), words_of(answer)))


def _closed_is_right(question: Question, answer: str) -> bool:
    gold, given = words_of(question.answer), words_of(answer)
    if not gold:
        return same_text(question.answer, answer)
    if gold in YES_NO:
        return _phrases_in(given, YES_NO) == {gold}
    options = [words_of(option) for option in question.options]
    return _phrases_in(given, [gold, *options]) == {gold}


def _phrases_in(words: tuple[str, ...], phrases: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """The phrases found reading from left to right, the longest that fits at each place, without overlap."""
    longest_first = sorted((phrase for phrase in phrases if phrase), key=len, reverse=True)
    found: set[tuple[str, ...]] = set()
    place = 0
    while place < len(words):
        fitting = next((phrase for phrase in longest_first if words[place : place + len(phrase)] == phrase), None)
        if fitting is not None:
            found.add(fitting)
        place += len(fitting) if fitting is not None else 1
    return found


def _recall(gold: tuple[str, ...], given: tuple[str, ...]) -> float | None:
    if not gold:
        return None
    return (Counter(gold) & Counter(given)).total() / len(gold)
