"""`exact`: the whole answer equals the gold answer, for open and closed questions alike."""

from medvlm_dpo.evaluation.graders.base import Grade, Grader
from medvlm_dpo.evaluation.graders.words import same_text
from medvlm_dpo.vocab import Question


def grader() -> Grader:
    """Exact match after the normalisation of `words.words_of`: 1 or 0, never None."""
    return Grader("exact", "1", _grade)


def _grade(question: Question, answer: str) -> Grade:
    return Grade("exact_match", float(same_text(question.answer, answer)))
