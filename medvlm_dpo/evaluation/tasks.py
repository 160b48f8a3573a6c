"""What is asked, and how answers are graded: one evaluation as a value."""

from collections.abc import Mapping
from dataclasses import dataclass

from medvlm_dpo.data.records import DataSource
from medvlm_dpo.errors import InputError
from medvlm_dpo.evaluation.graders.base import Grader


@dataclass(frozen=True)
class EvaluationTask:
    """Questions with the graders that judge the answers.

    Args:
        name: as in the configuration, e.g. `phantom`.
        source: reads the questions.
        graders: by name.
    """

    name: str
    source: DataSource
    graders: Mapping[str, Grader]


def vqa_task(*, name: str, questions: DataSource, graders: Mapping[str, Grader]) -> EvaluationTask:
    """Visual question answering: one generated answer a question, graded by rules on the text.

    Args:
        name: stands in folder names and tables.
        questions: the source of the questions.
        graders: by name; the key in the configuration is the grader's own name.

    Raises:
        InputError: no grader, or a key that differs from the name of its grader.
    """
    problems = [
        f"evaluation.graders.{key}: this grader calls itself {grader.name}; write {grader.name} as its key, so that every number "
        "stands under the name of the rule that gave it."
        for key, grader in graders.items()
        if key != grader.name
    ]
    if not graders:
        problems.append("evaluation.graders is empty; name at least one, for instance exact.")
    if problems:
        raise InputError(problems)
    return EvaluationTask(name, questions, dict(graders))
