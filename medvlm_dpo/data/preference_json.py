r"""The user's own preference data in the med-vlm-dpo / LLaVA layout.

A JSON list of records (or one record, or `.jsonl`):

    {"id": "case_7", "image": "images/7.png", "conversations": [{"from": "human", "value": "<image>\nIs there a fracture?"},
     {"from": "gpt", "value": "Yes."}], "rejected_conversations": [..., {"from": "gpt", "value": "No."}],
     "rejected_image": "noised/7.png", "weighted_score": 0.6, "error_type": "presence",
     "regions": [[10, 20, 64, 80]], "mask": "masks/7.png"}

Everything but `id`, `image` and one answer is optional; unknown keys are kept in `Example.extra`. Without
`rejected_conversations` a record has a chosen answer only; beside it `conversations` may be absent or end with the
question, and the record then has a rejected answer only. The same answer in both conversations is accepted where
`rejected_image` is another picture: such pairs compare images.
"""

import difflib
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from medvlm_dpo.data.conversations import Conversation, first_difference, read_conversation
from medvlm_dpo.data.image_folder import CheckedImage, check_images, conversion_notes, existing, existing_images, refuse_wrong_root
from medvlm_dpo.data.json_records import Fields, RawRecord, image_names, kind_of, read_records
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.data.records import ReadReport, all_of, apply_policy, validate_settings
from medvlm_dpo.data.regions import Box, check_region, read_boxes, refuse_reserved
from medvlm_dpo.data.splits import split_by_image
from medvlm_dpo.data.table import Candidate, one_per_id
from medvlm_dpo.errors import InputError
from medvlm_dpo.vocab import Example, Turn

READER_VERSION = 3
MISSPELT = {"conversations": "conversatons", "rejected_conversations": "rejected_conversatons"}
IMAGE_KEYS = ("image", "rejected_image", "mask")
KEYS = ("id", *IMAGE_KEYS, "weighted_score", "conversations", "rejected_conversations", "error_type", "regions")


class PreferenceRecord(NamedTuple):
    """The content of one record; two records with equal content are repetitions."""

    image: str
    context: tuple[Turn, ...]
    chosen: str | None
    rejected: str | None
    rejected_image: str | None
    pair_weight: float | None
    error_type: str | None
    regions: tuple[Box, ...] | None
    mask: str | None
    extra: dict[str, Any]


class PreferenceJson:
    """Preference records in a JSON file, with their images in a folder.

    Args:
        path: the JSON or `.jsonl` file.
        image_root: the folder the records' image paths are relative to; none may lead out of it.
        data_class: `public`, `research` or `credentialed`; messages about credentialed data name ids only.
        on_bad_record: `error` refuses the file when any record is bad, `drop` leaves bad records out and lists them.
        validation_fraction: share of the distinct images (by content) held out, in (0, 1); about, as each image is drawn by its hash.

    Raises:
        InputError: a setting is wrong.
    """

    def __init__(
        self, *, path: str, image_root: str, data_class: str, on_bad_record: str = "error", validation_fraction: float = 0.1
    ) -> None:
        all_of(
            lambda: validate_settings(data_class, on_bad_record),
            lambda: existing(path, "data.path"),
            lambda: existing(image_root, "data.image_root", folder=True),
            lambda: _validate_fraction(validation_fraction),
        )
        self._path, self._root = Path(path).expanduser(), Path(image_root).expanduser()
        self.data_class, self._on_bad_record, self._validation_fraction = data_class, on_bad_record, validation_fraction

    def read(self, manifest: Manifest | None = None) -> ReadReport:
        """All records, split by image; every image is decoded once unless the manifest knows its content.

        Raises:
            InputError: the file cannot be read, or has bad records and `on_bad_record` is `error`.
        """
        candidates = [_candidate(raw) for raw in self._raw]
        images = check_images(self._image_names(), self._root, manifest or Manifest(), data_class=self.data_class)
        refuse_wrong_root(images, self._root, "data.image_root")
        for candidate in candidates:
            _check_images_of(candidate, images)
        table = one_per_id(candidates, str(self._path), self.data_class)
        dropped = apply_policy(table.bad, self._on_bad_record, len(table.good) + len(table.bad), self.data_class)
        examples = [_example(id_, record, images) for id_, record in table.good.items()]
        splits, split_notes = split_by_image(examples, self._validation_fraction)
        used = {name for record in table.good.values() for name in (record.image, record.rejected_image) if name}
        notes = [*table.notes, *conversion_notes(images[name] for name in used), *split_notes]
        return ReadReport(
            splits, dropped=dropped, notes=tuple(notes), num_records=len(candidates), source=str(self._path), places=table.places
        )

    def named_files(self) -> Mapping[str, Path]:
        """The file of records and every image it names that exists, by names free of the folders' places."""
        return {"records": self._path, **existing_images(self._image_names(), self._root)}

    def input_files(self) -> tuple[Path, ...]:
        """The file of records and every image it names that exists."""
        return tuple(self.named_files().values())

    def recipe(self) -> dict[str, object]:
        """Settings that decide the examples; no paths."""
        return {
            "reader": "preference_json",
            "version": READER_VERSION,
            "on_bad_record": self._on_bad_record,
            "validation_fraction": self._validation_fraction,
        }

    @cached_property
    def _raw(self) -> list[RawRecord]:
        return read_records(self._path)

    def _image_names(self) -> list[str]:
        return image_names(self._raw, IMAGE_KEYS)


def _validate_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise InputError(f"data.validation_fraction must lie between 0 and 1, both excluded, got {fraction}")


def _candidate(raw: RawRecord) -> Candidate[PreferenceRecord]:
    fields = Fields(raw.value if isinstance(raw.value, dict) else {})
    if not isinstance(raw.value, dict):
        fields.add(f"the record is {kind_of(raw.value)}; expected an object")
        return Candidate(raw.place, fields, None, None)
    return Candidate(raw.place, fields, fields.identifier("id"), _parse(fields))


def _parse(fields: Fields) -> PreferenceRecord | None:
    _check_near_keys(fields)
    refuse_reserved(fields)
    image, rejected_image = fields.image("image"), fields.image("rejected_image", required=False)
    chosen, rejected = _conversations(fields)
    pair_weight, error_type = fields.number("weighted_score"), fields.text("error_type", required=False)
    regions, mask = read_boxes(fields), fields.image("mask", required=False)
    if chosen and rejected:
        _check_pair(fields, chosen, rejected, has_rejected_image=rejected_image is not None)
    asked = chosen or rejected
    if image is None or asked is None or fields.flaws:
        return None
    known = {*KEYS, *MISSPELT.values()}
    extra = {name: value for name, value in fields.record.items() if name not in known}
    answers = (chosen.answer if chosen else None, rejected.answer if rejected else None)
    return PreferenceRecord(image, asked.context, *answers, rejected_image, pair_weight, error_type, regions, mask, extra)


def _conversations(fields: Fields) -> tuple[Conversation | None, Conversation | None]:
    """The conversations with the chosen and with the rejected answer; one answer is enough, whichever it is."""
    has_rejected = _has(fields, "rejected_conversations")
    rejected = _conversation(fields, "rejected_conversations") if has_rejected else None
    if has_rejected and not _has(fields, "conversations"):
        return None, rejected
    return _conversation(fields, "conversations", answer_required=not has_rejected), rejected


def _conversation(fields: Fields, name: str, *, answer_required: bool = True) -> Conversation | None:
    misspelt = MISSPELT[name]
    if name in fields.record and misspelt in fields.record:
        fields.add(f"the record has both {name} and {misspelt}; keep one")
        return None
    key = misspelt if misspelt in fields.record else name
    if key not in fields.record:
        fields.add(f"{name} is missing; expected a list of turns")
        return None
    return read_conversation(fields, fields.record[key], key, answer_required=answer_required)


def _has(fields: Fields, name: str) -> bool:
    return any(fields.record.get(key) is not None for key in (name, MISSPELT[name]))


def _check_pair(fields: Fields, chosen: Conversation, rejected: Conversation, *, has_rejected_image: bool) -> None:
    if chosen.context != rejected.context:
        turn = first_difference(chosen.context, rejected.context)
        fields.add(f"rejected_conversations differs from conversations in turn {turn}; both must ask the same before the last answer")
    elif chosen.answer is not None and chosen.answer == rejected.answer and not has_rejected_image:
        fields.add("the chosen and the rejected answer are equal", chosen.answer)


def _check_near_keys(fields: Fields) -> None:
    """A misspelt optional key would be kept as unknown and silently not used."""
    absent = tuple(key for key in KEYS if key not in fields.record and MISSPELT.get(key) not in fields.record)
    for name in fields.record:
        if name not in KEYS and (near := _near_key(name, absent)):
            fields.add(f"an unknown key looks like a misspelt {near}; rename it", name)


@cache
def _near_key(name: str, absent: tuple[str, ...]) -> str | None:
    return next(iter(difflib.get_close_matches(name, absent, n=1, cutoff=0.85)), None)


def _check_images_of(candidate: Candidate[PreferenceRecord], images: Mapping[str, CheckedImage]) -> None:
    fields, record = candidate.fields, candidate.content
    for key in IMAGE_KEYS:
        name = Fields(fields.record).image(key, required=False)
        flaw = images[name].flaw if name else None
        if flaw:
            fields.add(flaw.reason if key == "image" else f"{key}: {flaw.reason}", flaw.detail)
    if record is not None:
        check_region(fields, record.regions, images[record.mask] if record.mask else None, images[record.image])
    if record is None or record.rejected_image is None or record.chosen != record.rejected:
        return
    pictures = [images[name].image for name in (record.image, record.rejected_image)]
    if pictures[0] and pictures[1] and pictures[0].sha256 == pictures[1].sha256:
        fields.add("chosen and rejected answer are equal and so are image and rejected_image; nothing tells the two apart")


def _example(id_: str, record: PreferenceRecord, images: Mapping[str, CheckedImage]) -> Example:
    picture = images[record.image].image
    rejected_picture = images[record.rejected_image].image if record.rejected_image else None
    assert picture, "records with a flawed image are bad records"
    marks = {"lesion_boxes": record.regions, "lesion_mask": images[record.mask].image if record.mask else None}
    return Example(
        id=id_,
        image=picture,
        turns=record.context,
        chosen=record.chosen,
        rejected=record.rejected,
        rejected_image=rejected_picture,
        pair_weight=record.pair_weight,
        error_type=record.error_type,
        extra={**record.extra, **{key: mark for key, mark in marks.items() if mark is not None}},
    )
