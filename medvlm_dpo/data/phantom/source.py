"""The phantom as a data source: preference pairs for training and validation, questions for evaluation."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from medvlm_dpo.data.phantom.anatomy import SPLITS
from medvlm_dpo.data.phantom.draws import GENERATOR_VERSION
from medvlm_dpo.data.phantom.own_wrong import OWN_WRONG_FILE, OwnWrong, read_own_wrong, starting_folder
from medvlm_dpo.data.phantom.pairs import PAIRS_VERSION, PhantomImage, facts_of, flipped, own_wrong_pair, single_fact_pairs
from medvlm_dpo.data.phantom.questions import QUESTIONS_PER_IMAGE, questions_of
from medvlm_dpo.data.records import ReadReport, validate_settings
from medvlm_dpo.errors import InputError, nearest
from medvlm_dpo.vocab import Example, Question, Turn


@dataclass(frozen=True)
class PhantomPairs:
    """Pairs from the splits `train` and `validation`.

    Args:
        data_class: `public`; the pictures are computed.
        num_pairs, num_validation_pairs: pairs per split.
        own_wrong_fraction: share of the pairs whose rejected answer is the starting model's own wrong one; the others
            reject the truth with one fact changed.
        starting_model: `builtin:NAME` or a model folder; its own wrong answers lie there.
        on_bad_record: has no effect here, since every record is good; every data source has this setting.
        flip_fraction: share of the training pairs whose two answers are swapped: a control (0.5 leaves nothing to learn), or label noise of
            a known rate. Which pairs is decided by their ids; validation pairs stay as they are.

    Raises:
        InputError: a number is out of range, or the starting model has no (or too few) own wrong answers.
    """

    data_class: str
    num_pairs: int
    num_validation_pairs: int
    own_wrong_fraction: float
    starting_model: str | None
    on_bad_record: str = "error"
    flip_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Refuses wrong settings, all at once."""
        validate_settings(self.data_class, self.on_bad_record)
        problems = [
            f"data.{name}={value}: expected a whole number of at least {least}."
            for name, value, least in (("num_pairs", self.num_pairs, 1), ("num_validation_pairs", self.num_validation_pairs, 0))
            if value < least
        ]
        problems += [
            f"data.{name}={value}: expected a number from 0 to 1."
            for name, value in (("own_wrong_fraction", self.own_wrong_fraction), ("flip_fraction", self.flip_fraction))
            if not 0.0 <= value <= 1.0
        ]
        if problems:
            raise InputError(problems)

    def read(self) -> ReadReport:
        """All pairs of both splits, in the order of their pictures."""
        wrong = read_own_wrong(starting_folder(self.starting_model)) if self.own_wrong_fraction > 0 else ()
        numbers = {"train": self.num_pairs, "validation": self.num_validation_pairs}
        examples = {split: self._pairs(split, number, wrong) for split, number in numbers.items()}
        examples["train"] = flipped(examples["train"], self.flip_fraction)
        return ReadReport(examples=examples, num_records=sum(numbers.values()))

    def input_files(self) -> tuple[Path, ...]:
        """The starting model's own wrong answers, where they are used."""
        if self.own_wrong_fraction <= 0:
            return ()
        return (starting_folder(self.starting_model) / OWN_WRONG_FILE,)

    def recipe(self) -> dict[str, object]:
        """Versions of generator and pairs, numbers and the mix."""
        return {
            "phantom_version": GENERATOR_VERSION,
            "pairs_version": PAIRS_VERSION,
            "num_pairs": self.num_pairs,
            "num_validation_pairs": self.num_validation_pairs,
            "own_wrong_fraction": self.own_wrong_fraction,
            "flip_fraction": self.flip_fraction,
        }

    def _pairs(self, split: str, number: int, wrong: tuple[OwnWrong, ...]) -> tuple[Example, ...]:
        wanted = round(self.own_wrong_fraction * number)
        own = [record for record in wrong if record.split == split][:wanted]
        if len(own) < wanted:
            raise InputError(
                f"data.own_wrong_fraction={self.own_wrong_fraction}: {wanted} of {number} {split} pairs would be own_wrong, but "
                f"{self.starting_model} has {len(own)} of them; lower the fraction or the number of pairs."
            )
        taken = frozenset((record.image, record.question) for record in own)
        single = islice(single_fact_pairs(split, taken), number - wanted)
        pairs = [*map(own_wrong_pair, own), *single]
        return tuple(sorted(pairs, key=_place))


@dataclass(frozen=True)
class PhantomQuestions:
    """The first questions of a split, picture by picture.

    Args:
        split: `train`, `validation`, `test`, `reserve` or `pretrain`.
        num_questions: how many.
        data_class: `public`.
    """

    split: str
    num_questions: int
    data_class: str

    def __post_init__(self) -> None:
        """Refuses wrong settings, all at once."""
        validate_settings(self.data_class, "error", group="evaluation")
        problems: list[str] = []
        if self.split not in SPLITS:
            problems.append(f"evaluation.questions.split: the phantom has no split {self.split!r}{nearest(self.split, SPLITS)}.")
        if self.num_questions < 1:
            problems.append(f"evaluation.questions.num_questions={self.num_questions}: expected a whole number of at least 1.")
        if problems:
            raise InputError(problems)

    def read(self) -> ReadReport:
        """The questions in order."""
        images = range(-(-self.num_questions // QUESTIONS_PER_IMAGE))
        questions = [question for index in images for question in image_questions(PhantomImage(self.split, index))]
        return ReadReport(questions=tuple(questions[: self.num_questions]), num_records=self.num_questions)

    def input_files(self) -> tuple[Path, ...]:
        """No files: pictures and questions are computed."""
        return ()

    def recipe(self) -> dict[str, object]:
        """Generator version, split and number."""
        return {"phantom_version": GENERATOR_VERSION, "split": self.split, "num_questions": self.num_questions}


def image_questions(image: PhantomImage) -> tuple[Question, ...]:
    """The questions of one picture as evaluation records."""
    return tuple(
        Question(
            id=f"{image.key}/{number}",
            image=image,
            turns=(Turn("human", asked.text),),
            answer=asked.answer,
            answer_type=asked.answer_type,
            error_type=asked.error_type,
            options=asked.options,
            extra={**facts_of(image), "question": number},
        )
        for number, asked in enumerate(questions_of(image.scene))
    )


def _place(example: Example) -> tuple[int, int]:
    """Picture and question of a pair, e.g. (12, 3) for `phantom/train/12/3/own_wrong`."""
    _, _, image, question, _ = example.id.split("/")
    return int(image), int(question)
