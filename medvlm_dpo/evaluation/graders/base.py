"""What a grader is: a named, versioned rule from one question and one answer to one score."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from medvlm_dpo.vocab import Question


class Grade(NamedTuple):
    """The verdict on one answer.

    Args:
        metric: the average this score belongs to, e.g. `closed_accuracy`; open and closed questions may differ.
        score: from 0 (wrong) to 1 (right), or None where the rule says nothing about this question. A None is left out of the
            average and counted.
    """

    metric: str
    score: float | None


@dataclass(frozen=True)
class Grader:
    """A scoring rule with its name and version, which stand beside every number it gives.

    Args:
        name: the word used in configurations and column names, e.g. `strict`.
        version: raised whenever any score could change; stored scores of another version are never mixed with new ones.
        grade: the rule. It may use `answer`, `answer_type` and `options` of the question, and nothing else, so that stored answers
            can be graded again without images.
    """

    name: str
    version: str
    grade: Callable[[Question, str], Grade]
