"""Answers + questions + graders -> `predictions.parquet` and `scores.json`; also grades stored answers again, without a model."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from medvlm_dpo.errors import InputError
from medvlm_dpo.evaluation.graders.base import Grade, Grader
from medvlm_dpo.files import utc_now, write_json_atomic
from medvlm_dpo.results import predictions as stored
from medvlm_dpo.results.predictions import GradeColumn, StoredAnswer
from medvlm_dpo.results.status import read_document
from medvlm_dpo.vocab import Question

SCORES_FILE = "scores.json"
ANSWER_TYPES = ("open", "closed")
SHOWN_IDS = 5


class GeneratedAnswer(Protocol):
    """What scoring needs to know of one answer, `generation.Answer` for instance."""

    @property
    def question_id(self) -> str:
        """Id of the question it answers."""
        ...

    @property
    def text(self) -> str:
        """The decoded answer."""
        ...

    @property
    def num_tokens(self) -> int:
        """Generated tokens."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether the model ended the answer by itself, within the length limit."""
        ...


class ScoredAnswers(NamedTuple):
    """What `score_predictions` returns.

    Args:
        answers: one row a question, in the order of the questions.
        grades: by grader, one score a row.
        summary: the part of scores.json that follows from them.
    """

    answers: tuple[StoredAnswer, ...]
    grades: dict[str, GradeColumn]
    summary: dict[str, Any]


def score_predictions(
    predictions: Iterable[GeneratedAnswer], questions: Sequence[Question], graders: Mapping[str, Grader]
) -> ScoredAnswers:
    """Grades every answer with every grader.

    Args:
        predictions: one per question, in any order.
        questions: the whole evaluation; questions are never intersected silently.
        graders: by name.

    Raises:
        InputError: a question without answer, an answer without question, a repeated id, or an unknown answer type.
    """
    given = list(predictions)
    _check_join([prediction.question_id for prediction in given], questions)
    by_id = {prediction.question_id: prediction for prediction in given}
    hashes: dict[str, str] = {}
    for question in questions:
        if question.image.key not in hashes:
            hashes[question.image.key] = question.image.content_hash()
    answers = tuple(_stored(question, by_id[question.id], hashes[question.image.key]) for question in questions)
    grades = {name: _grade_all(grader, questions, answers) for name, grader in graders.items()}
    return ScoredAnswers(answers, grades, _summary(answers, grades, graders))


def write_scores(
    folder: Path,
    scored: ScoredAnswers,
    *,
    evaluation: str,
    decoding: Mapping[str, Any],
    data_class: str,
    dropped_records: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Writes `predictions.parquet`, then `scores.json`, whose presence says that the evaluation is complete.

    Args:
        folder: of the evaluation.
        scored: answers, grades and their summary.
        evaluation: its name.
        decoding: how answers were generated.
        data_class: of the questions.
        dropped_records: rows left out of the questions, one sentence each.
        warnings: what must be said beside the scores.
    """
    stored.write_predictions(folder / stored.FILE_NAME, scored.answers, scored.grades)
    header = {"evaluation": evaluation, "decoding": dict(decoding), "data_class": data_class}
    header |= {"dropped_records": list(dropped_records), "warnings": list(warnings)}
    write_json_atomic(folder / SCORES_FILE, {**header, **scored.summary, "graded_at": utc_now()})


def outdated_graders(folder: Path, graders: Mapping[str, Grader]) -> list[str]:
    """Names of graders whose scores are not in the folder, or are there in another version."""
    path = folder / SCORES_FILE
    known = read_document(path, required=False).get("graders", {})
    return [name for name, grader in graders.items() if known.get(name, {}).get("version") != grader.version]


def regrade(folder: Path, graders: Mapping[str, Grader]) -> dict[str, Any]:
    """Grades the stored answers of one evaluation folder again: no model, no images, no new generation.

    Scores of stored graders that are not among `graders` stay as they are.

    Args:
        folder: an evaluation folder with `predictions.parquet` and `scores.json`.
        graders: by name.

    Returns:
        The new content of scores.json.
    """
    scores = read_document(folder / SCORES_FILE)
    answers = stored.read_answers(folder / stored.FILE_NAME)
    kept_names = [name for name in scores["graders"] if name not in graders]
    grades = stored.read_grades(folder / stored.FILE_NAME, kept_names)
    questions = [_question_of(answer) for answer in answers]
    grades |= {name: _grade_all(grader, questions, answers) for name, grader in graders.items()}
    stored.write_predictions(folder / stored.FILE_NAME, answers, grades)
    summary = _summary(answers, {name: grades[name] for name in graders}, graders)
    summary["graders"] = {name: scores["graders"][name] for name in kept_names} | summary["graders"]
    scores |= {**summary, "graded_at": utc_now()}
    write_json_atomic(folder / SCORES_FILE, scores)
    return scores


@dataclass(frozen=True)
class _StoredImage:
    """Stands for the picture of a stored answer, which no grader may ask for."""

    key: str
    hash: str

    def load(self) -> Image.Image:
        """Never available."""
        raise InputError(f"A grader asked for the picture {self.key} of a stored answer; graders may use texts only.")

    def content_hash(self) -> str:
        """The stored hash."""
        return self.hash


def _question_of(answer: StoredAnswer) -> Question:
    return Question(
        id=answer.question_id,
        image=_StoredImage(answer.image_key, answer.image_hash),
        turns=(),
        answer=answer.gold,
        answer_type=answer.answer_type,
        error_type=answer.error_type,
        options=answer.options,
    )


def _stored(question: Question, prediction: GeneratedAnswer, image_hash: str) -> StoredAnswer:
    return StoredAnswer(
        question_id=question.id,
        image_key=question.image.key,
        image_hash=image_hash,
        error_type=question.error_type,
        answer_type=question.answer_type,
        gold=question.answer,
        options=question.options,
        answer=prediction.text,
        num_tokens=prediction.num_tokens,
        stopped=prediction.stopped,
    )


def _grade_all(grader: Grader, questions: Sequence[Question], answers: Sequence[StoredAnswer]) -> GradeColumn:
    grades = [_checked(grader, question, answer.answer) for question, answer in zip(questions, answers, strict=True)]
    return GradeColumn(tuple(grade.metric for grade in grades), tuple(grade.score for grade in grades))


def _checked(grader: Grader, question: Question, answer: str) -> Grade:
    grade = grader.grade(question, answer)
    if grade.score is not None and not 0 <= grade.score <= 1:  # NaN fails this comparison too
        raise InputError(f"Grader {grader.name} gave {grade.score} for question {question.id}; a score lies between 0 and 1.")
    return grade


def _summary(answers: Sequence[StoredAnswer], grades: Mapping[str, GradeColumn], graders: Mapping[str, Grader]) -> dict[str, Any]:
    everything = range(len(answers))
    by_type: dict[str, list[int]] = defaultdict(list)
    for place, answer in enumerate(answers):
        by_type[answer.error_type or "unlabelled"].append(place)
    if set(by_type) == {"unlabelled"}:
        by_type.clear()
    return {
        "questions": len(answers),
        "images": len({answer.image_hash for answer in answers}),
        "answers": {
            "num_empty": sum(not answer.answer.strip() for answer in answers),
            "num_unstopped": sum(not answer.stopped for answer in answers),
            "mean_num_tokens": sum(answer.num_tokens for answer in answers) / len(answers) if answers else None,
        },
        "graders": {
            name: {
                "version": graders[name].version,
                "overall": _averages(column, everything),
                "by_error_type": {error_type: _averages(column, places) for error_type, places in sorted(by_type.items())},
            }
            for name, column in grades.items()
        },
    }


def _averages(column: GradeColumn, places: Iterable[int]) -> dict[str, dict[str, Any]]:
    by_metric: dict[str, list[float | None]] = defaultdict(list)
    for place in places:
        by_metric[column.metrics[place]].append(column.scores[place])
    averages: dict[str, dict[str, Any]] = {}
    for metric, scores in sorted(by_metric.items()):
        known = [score for score in scores if score is not None]
        value = sum(known) / len(known) if known else None
        averages[metric] = {"value": value, "num_questions": len(known), "num_without_score": len(scores) - len(known)}
    return averages


def _check_join(answered: Sequence[str], questions: Sequence[Question]) -> None:
    asked = [question.id for question in questions]
    problems = [
        _complaint("questions have no answer", _without(asked, answered)),
        _complaint("answers belong to no question", _without(answered, asked)),
        _complaint("question ids are asked more than once", [name for name, count in Counter(asked).items() if count > 1]),
        _complaint("questions are answered more than once", [name for name, count in Counter(answered).items() if count > 1]),
        _complaint(
            f"questions have an answer_type other than {' or '.join(ANSWER_TYPES)}",
            [question.id for question in questions if question.answer_type not in ANSWER_TYPES],
        ),
    ]
    if found := [problem for problem in problems if problem]:
        raise InputError(found)


def _complaint(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(map(repr, names[:SHOWN_IDS]))
    rest = f" and {len(names) - SHOWN_IDS} more" if len(names) > SHOWN_IDS else ""
    return f"Grading: {len(names)} {what} ({shown}{rest}); answers and questions are joined by their exact id, one to one."


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]
