"""Scoring: the join, the averages, the files, and grading stored answers again."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from medvlm_dpo.data.records import ReadReport
from medvlm_dpo.errors import InputError
from medvlm_dpo.evaluation.graders import exact, strict
from medvlm_dpo.evaluation.graders.base import Grade, Grader
from medvlm_dpo.evaluation.scoring import outdated_graders, regrade, score_predictions, write_scores
from medvlm_dpo.evaluation.tasks import vqa_task
from medvlm_dpo.results.predictions import read_answers, read_grades
from medvlm_dpo.vocab import Question

GRADERS = {"exact": exact.grader(), "strict": strict.grader()}


class Answer(NamedTuple):
    """One answer as generation hands it over."""

    question_id: str
    text: str
    num_tokens: int
    stopped: bool


@dataclass(frozen=True)
class Picture:
    """A picture that is hashed but never loaded."""

    key: str

    def load(self) -> Image.Image:
        raise AssertionError("scoring looks at texts only")

    def content_hash(self) -> str:
        return f"hash of {self.key}"


QUESTIONS = (
    Question("q1", Picture("a"), (), "yes", "closed", "presence"),
    Question("q2", Picture("a"), (), "left", "closed", "laterality", ("left", "right")),
    Question("q3", Picture("b"), (), "lung nodule", "open", "presence"),
    Question("q4", Picture("c"), (), "?", "open", "laterality"),
)
ANSWERS = (
    Answer("q3", "lung", 1, stopped=True),
    Answer("q1", "yes", 1, stopped=True),
    Answer("q2", "left and right", 3, stopped=False),
    Answer("q4", "", 0, stopped=True),
)


def written(folder, graders=GRADERS):
    scored = score_predictions(ANSWERS, QUESTIONS, graders)
    write_scores(folder, scored, evaluation="phantom", decoding={"max_new_tokens": 8}, data_class="public")
    return json.loads((folder / "scores.json").read_text())


def test_averages_by_hand(tmp_path):
    """Exact: only q1 of 4. Strict closed: q1 of 2. Strict open: q3 recalls 1 of 2 words, q4 has no words and no score."""
    scores = written(tmp_path)
    assert scores["schema_version"] == 1
    assert (scores["evaluation"], scores["decoding"], scores["data_class"]) == ("phantom", {"max_new_tokens": 8}, "public")
    assert (scores["questions"], scores["images"]) == (4, 3)
    assert scores["answers"] == {"num_empty": 1, "num_unstopped": 1, "mean_num_tokens": 5 / 4}
    assert scores["graders"]["exact"]["version"] == "1"
    assert scores["graders"]["exact"]["overall"] == {"exact_match": {"value": 0.25, "num_questions": 4, "num_without_score": 0}}
    assert scores["graders"]["strict"]["overall"] == {
        "closed_accuracy": {"value": 0.5, "num_questions": 2, "num_without_score": 0},
        "open_recall": {"value": 0.5, "num_questions": 1, "num_without_score": 1},
    }
    assert scores["graders"]["strict"]["by_error_type"] == {
        "laterality": {
            "closed_accuracy": {"value": 0.0, "num_questions": 1, "num_without_score": 0},
            "open_recall": {"value": None, "num_questions": 0, "num_without_score": 1},
        },
        "presence": {
            "closed_accuracy": {"value": 1.0, "num_questions": 1, "num_without_score": 0},
            "open_recall": {"value": 0.5, "num_questions": 1, "num_without_score": 0},
        },
    }


def test_rows_keep_the_order_of_the_questions_and_every_answer(tmp_path):
    written(tmp_path)
    rows = read_answers(tmp_path / "predictions.parquet")
    assert [row.question_id for row in rows] == ["q1", "q2", "q3", "q4"]
    assert [row.answer for row in rows] == ["yes", "left and right", "lung", ""]
    assert (rows[1].options, rows[1].image_key, rows[1].image_hash, rows[1].stopped) == (("left", "right"), "a", "hash of a", False)
    grade = read_grades(tmp_path / "predictions.parquet", ["strict"])["strict"]
    assert grade.scores == (1.0, 0.0, 0.5, None)
    assert grade.metrics == ("closed_accuracy", "closed_accuracy", "open_recall", "open_recall")


def test_questions_without_error_types_have_no_breakdown():
    questions = [Question("q1", Picture("a"), (), "yes", "closed")]
    scored = score_predictions([Answer("q1", "yes", 1, stopped=True)], questions, GRADERS)
    assert scored.summary["graders"]["exact"]["by_error_type"] == {}


@pytest.mark.parametrize(
    ("answers", "questions", "message"),
    [
        (ANSWERS[:3], QUESTIONS, r"1 questions have no answer \('q4'\)"),
        (ANSWERS, QUESTIONS[:3], r"1 answers belong to no question \('q4'\)"),
        ((*ANSWERS, ANSWERS[0]), QUESTIONS, r"answered more than once \('q3'\)"),
        (ANSWERS, (*QUESTIONS, QUESTIONS[1]), r"asked more than once \('q2'\)"),
        ((), [Question(str(n), Picture("a"), (), "yes", "closed") for n in range(7)], r"7 questions have no answer \(.*'4' and 2 more\)"),
        ([Answer("q", "x", 1, stopped=True)], [Question("q", Picture("a"), (), "yes", "CLOSED")], "answer_type other than open or closed"),
    ],
)
def test_a_join_that_does_not_fit_is_refused(answers, questions, message):
    with pytest.raises(InputError, match=message):
        score_predictions(answers, questions, GRADERS)


def test_ids_are_compared_exactly():
    with pytest.raises(InputError, match="no answer") as refused:
        score_predictions([Answer("1", "yes", 1, stopped=True)], [Question("01", Picture("a"), (), "yes", "closed")], GRADERS)
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_a_grader_must_stay_between_0_and_1(score):
    broken = Grader("broken", "1", lambda _question, _answer: Grade("accuracy", score))
    with pytest.raises(InputError, match=r"Grader broken gave .* between 0 and 1"):
        score_predictions(ANSWERS, QUESTIONS, {"broken": broken})


def test_an_added_grader_reads_the_stored_answers(tmp_path):
    """The stored strict scores stay, the new grader sees gold, type and options, and the files agree with grading all at once."""
    written(tmp_path, {"strict": GRADERS["strict"]})
    assert outdated_graders(tmp_path, GRADERS) == ["exact"]
    scores = regrade(tmp_path, {"exact": GRADERS["exact"]})
    assert outdated_graders(tmp_path, GRADERS) == []
    expected = written(tmp_path / "at_once")
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    assert scores["graders"] == expected["graders"]
    assert scores["answers"] == expected["answers"]
    names = list(GRADERS)
    assert read_grades(tmp_path / "predictions.parquet", names) == read_grades(tmp_path / "at_once" / "predictions.parquet", names)
    assert read_answers(tmp_path / "predictions.parquet") == read_answers(tmp_path / "at_once" / "predictions.parquet")


def test_grading_again_knows_the_options_of_a_question(tmp_path):
    """`left and right` names both options: right for nobody who knows them, right for `left` without them."""
    written(tmp_path, {"exact": GRADERS["exact"]})
    scores = regrade(tmp_path, {"strict": GRADERS["strict"]})
    assert scores["graders"]["strict"]["by_error_type"]["laterality"]["closed_accuracy"]["value"] == 0.0


def test_a_new_version_replaces_the_old_scores(tmp_path):
    written(tmp_path)
    generous = Grader("exact", "2", lambda _question, _answer: Grade("exact_match", 1.0))
    assert outdated_graders(tmp_path, {"exact": generous}) == ["exact"]
    scores = regrade(tmp_path, {"exact": generous})
    assert scores["graders"]["exact"]["version"] == "2"
    assert scores["graders"]["exact"]["overall"]["exact_match"]["value"] == 1.0
    assert list(scores["graders"]) == ["strict", "exact"]


def test_nothing_graded_means_every_grader_is_outdated(tmp_path):
    assert outdated_graders(tmp_path, GRADERS) == ["exact", "strict"]


def test_a_grader_cannot_look_at_the_picture_of_a_stored_answer(tmp_path):
    written(tmp_path)
    curious = Grader("curious", "1", lambda question, _answer: Grade("looked", float(question.image.load().width)))
    with pytest.raises(InputError, match="texts only"):
        regrade(tmp_path, {"curious": curious})


class NoSource:
    """A question source no test reads."""

    data_class = "public"

    def read(self) -> ReadReport:
        return ReadReport()

    def input_files(self) -> tuple[Path, ...]:
        return ()

    def recipe(self) -> dict[str, object]:
        return {}


def test_task_keeps_its_parts():
    task = vqa_task(name="phantom", questions=NoSource(), graders=GRADERS)
    assert (task.name, task.source.data_class, task.graders) == ("phantom", "public", GRADERS)


def test_a_grader_under_a_wrong_key_is_refused():
    with pytest.raises(InputError, match=r"evaluation\.graders\.mine: this grader calls itself exact"):
        vqa_task(name="phantom", questions=NoSource(), graders={"mine": GRADERS["exact"]})
    with pytest.raises(InputError, match="empty"):
        vqa_task(name="phantom", questions=NoSource(), graders={})
