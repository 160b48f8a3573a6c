r"""The user's own questions in the LLaVA-Med layout.

One JSON object a line (or a JSON list of them):

    {"question_id": 10, "image": "10.jpg", "text": "Is there an effusion?\n<image>", "gpt4_answer": "yes", "answer_type": "CLOSED "}

`gpt4_answer` is the gold answer. `answer_type` is OPEN or CLOSED in any case, stray blanks ignored. `error_type` is
optional; unknown keys are kept in `Question.extra`. The layout lists no options, so closed questions have none.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from medvlm_dpo.data.conversations import IMAGE_PLACEHOLDER, without_placeholder
from medvlm_dpo.data.image_folder import CheckedImage, check_images, conversion_notes, existing, existing_images, refuse_wrong_root
from medvlm_dpo.data.json_records import Fields, RawRecord, image_names, kind_of, read_records
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.data.records import ReadReport, all_of, apply_policy, validate_settings
from medvlm_dpo.data.table import Candidate, one_per_id
from medvlm_dpo.vocab import Question, Turn

READER_VERSION = 1
ANSWER_TYPES = ("open", "closed")
KEYS = ("question_id", "image", "text", "gpt4_answer", "answer_type", "error_type")


class QuestionRow(NamedTuple):
    """The content of one row."""

    image: str
    text: str
    answer: str
    answer_type: str
    error_type: str | None
    extra: dict[str, Any]


class VqaJsonl:
    """Questions in a `.jsonl` file, with their images in a folder.

    Args:
        path: the file.
        image_root: the folder the rows' image paths are relative to; none may lead out of it.
        data_class: `public`, `research` or `credentialed`; messages about credentialed data name ids only.
        on_bad_record: `error` refuses the file when any row is bad, `drop` leaves bad rows out and lists them.

    Raises:
        InputError: a setting is wrong.
    """

    def __init__(self, *, path: str, image_root: str, data_class: str, on_bad_record: str = "error") -> None:
        all_of(
            lambda: validate_settings(data_class, on_bad_record, group="evaluation"),
            lambda: existing(path, "evaluation.path"),
            lambda: existing(image_root, "evaluation.image_root", folder=True),
        )
        self._path, self._root = Path(path).expanduser(), Path(image_root).expanduser()
        self.data_class, self._on_bad_record = data_class, on_bad_record

    def read(self, manifest: Manifest | None = None) -> ReadReport:
        """All questions; every image is decoded once unless the manifest knows its content.

        Raises:
            InputError: the file cannot be read, or has bad rows and `on_bad_record` is `error`.
        """
        candidates = [_candidate(raw) for raw in self._raw]
        images = check_images(self._image_names(), self._root, manifest or Manifest(), data_class=self.data_class)
        refuse_wrong_root(images, self._root, "evaluation.image_root")
        for candidate in candidates:
            name = Fields(candidate.fields.record).image("image", required=False)
            flaw = images[name].flaw if name else None
            if flaw:
                candidate.fields.flaws.append(flaw)
        table = one_per_id(candidates, str(self._path), self.data_class)
        num_distinct = len(table.good) + len(table.bad)
        dropped = apply_policy(table.bad, self._on_bad_record, num_distinct, self.data_class, group="evaluation")
        questions = tuple(_question(id_, row, images[row.image]) for id_, row in table.good.items())
        notes = (*table.notes, *conversion_notes(images[name] for name in {row.image for row in table.good.values()}))
        return ReadReport(questions=questions, dropped=dropped, notes=notes, num_records=len(candidates))

    def named_files(self) -> Mapping[str, Path]:
        """The file of questions and every image it names that exists, by names free of the folders' places."""
        return {"records": self._path, **existing_images(self._image_names(), self._root)}

    def input_files(self) -> tuple[Path, ...]:
        """The file of questions and every image it names that exists."""
        return tuple(self.named_files().values())

    def recipe(self) -> dict[str, object]:
        """Settings that decide the questions; no paths."""
        return {"reader": "vqa_jsonl", "version": READER_VERSION, "on_bad_record": self._on_bad_record}

    @cached_property
    def _raw(self) -> list[RawRecord]:
        return read_records(self._path)

    def _image_names(self) -> list[str]:
        return image_names(self._raw, ("image",))


def _candidate(raw: RawRecord) -> Candidate[QuestionRow]:
    fields = Fields(raw.value if isinstance(raw.value, dict) else {})
    if not isinstance(raw.value, dict):
        fields.add(f"the row is {kind_of(raw.value)}; expected an object")
        return Candidate(raw.place, fields, None, None)
    return Candidate(raw.place, fields, fields.identifier("question_id"), _parse(fields))


def _parse(fields: Fields) -> QuestionRow | None:
    image, text, answer = fields.image("image"), _question_text(fields), fields.text("gpt4_answer")
    answer_type, error_type = _answer_type(fields), fields.text("error_type", required=False)
    if image is None or text is None or answer is None or answer_type is None or fields.flaws:
        return None
    extra = {name: value for name, value in fields.record.items() if name not in KEYS}
    return QuestionRow(image, text, answer, answer_type, error_type, extra)


def _question_text(fields: Fields) -> str | None:
    text = fields.text("text")
    if text is not None and text.count(IMAGE_PLACEHOLDER) > 1:
        fields.add(f"text holds {IMAGE_PLACEHOLDER} more than once; a question has one image")
    return fields.clean(without_placeholder(text), "text") if text is not None else None


def _answer_type(fields: Fields) -> str | None:
    value = fields.text("answer_type")
    if value is None or value.lower() in ANSWER_TYPES:
        return value.lower() if value else None
    fields.add("answer_type must be OPEN or CLOSED", value)
    return None


def _question(id_: str, row: QuestionRow, checked: CheckedImage) -> Question:
    assert checked.image, "rows with a flawed image are bad records"
    return Question(
        id=id_,
        image=checked.image,
        turns=(Turn("human", row.text),),
        answer=row.answer,
        answer_type=row.answer_type,
        error_type=row.error_type,
        extra=row.extra,
    )
