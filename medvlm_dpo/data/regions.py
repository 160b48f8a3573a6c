"""Where in its picture a record points: boxes, a mask file, and what they must agree with."""

import math
from typing import Any

from medvlm_dpo.data.image_folder import CheckedImage
from medvlm_dpo.data.json_records import Fields

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels; right and bottom exclusive
RESERVED = {"lesion_boxes": "regions", "lesion_mask": "mask"}  # keys of `Example.extra` and what they are read from


def read_boxes(fields: Fields) -> tuple[Box, ...] | None:
    """The boxes under `regions`: a list of [left, top, right, bottom]; an empty one says that nothing is to be marked.

    Returns:
        None where the field is absent or wrong.
    """
    value = fields.record.get("regions")
    if value is None:
        return None
    if not isinstance(value, list):
        fields.add("regions must be a list of boxes [left, top, right, bottom] in pixels")
        return None
    boxes = [_box(fields, number, item) for number, item in enumerate(value, 1)]
    return tuple(box for box in boxes if box is not None)


def check_region(fields: Fields, boxes: tuple[Box, ...] | None, mask: CheckedImage | None, image: CheckedImage) -> None:
    """Compares boxes and mask with the picture they belong to; a flawed picture or mask has been told already.

    Args:
        fields: where flaws go.
        boxes: of the record.
        mask: of the record.
        image: the record's picture.
    """
    if image.flaw is None:
        _check_boxes(fields, boxes or (), image.size)
        if mask is not None and mask.flaw is None:
            _check_mask(fields, mask, image.size)


def refuse_reserved(fields: Fields) -> None:
    """Names that corruptions read from `Example.extra` cannot be taken by unknown keys, which nobody has checked."""
    for key, name in RESERVED.items():
        if key in fields.record:
            fields.add(f"the key {key} is reserved; name it {name}")


def _box(fields: Fields, number: int, value: Any) -> Box | None:
    if not isinstance(value, list) or len(value) != 4 or not all(_is_place(side) for side in value):
        fields.add(f"box {number} of regions must be four finite numbers of at least 0: left, top, right, bottom")
        return None
    left, top, right, bottom = value
    if left >= right or top >= bottom:
        fields.add(f"box {number} of regions is empty; expected left < right and top < bottom", f"{left:g}, {top:g}, {right:g}, {bottom:g}")
        return None
    return left, top, right, bottom


def _is_place(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _check_boxes(fields: Fields, boxes: tuple[Box, ...], size: tuple[int, int]) -> None:
    """Boxes that reach beyond their picture were drawn on another size of it, or are [left, top, width, height]."""
    for number, (_, _, right, bottom) in enumerate(boxes, 1):
        if math.ceil(right) > size[0] or math.ceil(bottom) > size[1]:
            fields.add(f"box {number} of regions reaches beyond the image of {size[0]} x {size[1]} pixels", f"{right:g}, {bottom:g}")


def _check_mask(fields: Fields, mask: CheckedImage, size: tuple[int, int]) -> None:
    if mask.size != size:
        fields.add(f"the mask has {mask.size[0]} x {mask.size[1]} pixels, its image {size[0]} x {size[1]}")
    if mask.is_black:
        fields.add("the mask is black everywhere, so it marks nothing; for a record without lesion give regions as an empty list")
