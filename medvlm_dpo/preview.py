"""Contact sheets: pairs beside their true and their corrupted pictures, as one HTML file that needs nothing else (`task=preview`)."""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from medvlm_dpo.config.instantiate import call_if_any, call_target, check_targets, settings_of
from medvlm_dpo.data.content import read_source
from medvlm_dpo.data.corruption.base import Corruption, corrupted_image
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.data.records import DataSource
from medvlm_dpo.errors import InputError
from medvlm_dpo.files import write_bytes_atomic
from medvlm_dpo.vocab import Example, ImageSource

SMALLEST_SIDE = 16
Config = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; }
header { border-bottom: 2px solid #1c1c1c; padding-bottom: 1rem; margin-bottom: 1.2rem; }
header p { margin: .3rem 0; }
.warning { border: 2px solid #a40000; color: #a40000; padding: .5rem .8rem; font-weight: 600; }
article { display: grid; grid-template-columns: 11rem 11rem 1fr; gap: 1rem; padding: 1rem 0; border-bottom: 1px solid #ccc; }
article, figure { break-inside: avoid; }
figure { margin: 0; }
img { width: 100%; border: 1px solid #ccc; display: block; }
img.enlarged { image-rendering: pixelated; }
figcaption, .facts { font-size: .82rem; color: #555; }
.missing { border: 1px dashed #999; padding: .6rem; color: #a40000; font-size: .82rem; overflow-wrap: anywhere; }
.said { overflow-wrap: anywhere; min-width: 0; }
.said p { margin: 0 0 .5rem; white-space: pre-wrap; }
.said b { display: block; font-size: .75rem; letter-spacing: .04em; text-transform: uppercase; color: #555; }
mark { background: #ffe08a; color: inherit; padding: 0 .1em; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } @page { margin: 15mm; } }
@media (max-width: 44rem) { article { grid-template-columns: 1fr 1fr; } .said { grid-column: 1 / -1; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class _Sheet(NamedTuple):
    """What one file shows: the choices' names, the corruption (None for `none`), and the longest side of a picture in pixels."""

    data: str
    corruption_name: str
    corruption: Corruption | None
    picture_side: int


def write_previews(configs: Sequence[dict[str, Any]], *, num_pairs: int, picture_side: int) -> str:
    """Writes `<output folder>/previews/<data>-<corruption>.html` for every data set and corruption that the configurations choose.

    Args:
        configs: composed configurations; of each `data`, `corruption`, `paths` and the names in `choices` are read.
        num_pairs: pairs to show, evenly spread over all.
        picture_side: longest side of a picture in the file, in pixels; larger ones are made smaller, smaller ones stay.

    Returns:
        One line per file.

    Raises:
        InputError: a setting is out of range, the data or the corruption cannot be used, or two sheets would share one file.
    """
    _check_settings(num_pairs, picture_side)
    lines = [_write(config, path, num_pairs, picture_side) for path, config in _sheets(configs).items()]
    return "\n".join(lines)


def _check_settings(num_pairs: int, picture_side: int) -> None:
    least = {"num_pairs": (num_pairs, 1), "picture_side": (picture_side, SMALLEST_SIDE)}
    problems = [f"task.settings.{key}: expects at least {low}, got {value}" for key, (value, low) in least.items() if value < low]
    if problems:
        raise InputError(problems)


def _sheets(configs: Sequence[Config]) -> dict[Path, Config]:
    """The configuration of every file; those that differ in nothing that is shown share one."""
    sheets: dict[Path, Config] = {}
    for config in configs:
        choices = config["choices"]
        path = Path(config["paths"]["output_dir"]) / "previews" / f"{choices['data']}-{choices['corruption']}.html"
        first = sheets.setdefault(path, config)
        if any(first[group] != config[group] for group in ("data", "corruption")):
            raise InputError(f"{path}: two of the configurations write this file with other settings; preview them one after the other")
    problems = [
        problem for config in sheets.values() for problem in check_targets({group: config[group] for group in ("data", "corruption")})
    ]
    if problems:
        raise InputError(dict.fromkeys(problems))
    return sheets


def _write(config: Config, path: Path, num_pairs: int, picture_side: int) -> str:
    source: DataSource = call_target(config["data"])
    corruption: Corruption | None = call_if_any(config["corruption"])
    manifest = Manifest(Path(config["paths"]["output_dir"]) / "manifest.json")
    examples = read_source(source, manifest).examples
    manifest.save()
    pairs = [(split, example) for split, members in examples.items() for example in members]
    shown = _evenly(pairs, num_pairs)
    sheet = _Sheet(config["choices"]["data"], config["choices"]["corruption"], corruption, picture_side)
    body = [_header(sheet, settings_of(config["corruption"]), source.data_class, len(shown), [example for _, example in pairs])]
    body += [_article(sheet, split, example) for split, example in shown]
    page = _page(f"{sheet.data}, corruption {sheet.corruption_name}", body)
    write_bytes_atomic(path, page.encode(), private=source.data_class != "public")
    return f"{path}: {len(shown)} of {len(pairs)} pairs"


def _evenly(items: Sequence[tuple[str, Example]], number: int) -> list[tuple[str, Example]]:
    """At most `number` items, the first among them, at equal distances."""
    kept = min(number, len(items))
    return [items[place * len(items) // kept] for place in range(kept)]


def _page(title: str, body: Iterable[str]) -> str:
    head = (
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>'
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n' + "\n".join(body) + "\n</body>\n</html>\n"


def _header(sheet: _Sheet, settings: Config, data_class: str, num_shown: int, examples: Sequence[Example]) -> str:
    said = ", ".join(f"{key} {value}" for key, value in settings.items()) if sheet.corruption else "pictures are shown as they are"
    lines = [
        f"<h1>{html.escape(sheet.data)}: pairs and their corrupted pictures</h1>",
        f"<p>{num_shown} of {len(examples)} preference pairs of <b>data={html.escape(sheet.data)}</b>, evenly spread, with what "
        f"<b>corruption={html.escape(sheet.corruption_name)}</b> ({html.escape(said)}) shows to losses that ask for a corrupted picture. "
        "Words that only one of the two answers has are marked.</p>",
        f"<p>Data class: {html.escape(data_class)}.</p>",
    ]
    num_lacking = sum(sheet.corruption is not None and sheet.corruption.lacks(example) is not None for example in examples)
    if num_lacking:
        lines.append(f'<p class="warning">{num_lacking} of all {len(examples)} pairs lack what this corruption needs.</p>')
    if data_class != "public":
        said = f"This file holds pictures and texts of data class {data_class}. It must stay on this machine."
        lines.append(f'<p class="warning">{html.escape(said)}</p>')
    return "<header>\n" + "\n".join(lines) + "\n</header>"


def _article(sheet: _Sheet, split: str, example: Example) -> str:
    chosen, rejected = _marked(example.chosen, example.rejected)
    question = "\n".join(turn.text if turn.role == "human" else f"[{turn.text}]" for turn in example.turns)
    said = [("question", html.escape(question)), ("chosen", chosen), ("rejected", rejected)]
    facts = {"weight": example.pair_weight, "error type": example.error_type, "split": split, "id": example.id}
    shown = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    return (
        f'<article>\n{_figure(example.image, "picture", sheet.picture_side)}\n{_corrupted_figure(sheet, example)}\n<div class="said">\n'
        + "\n".join(f"<p><b>{name}</b>{text}</p>" for name, text in said)
        + f'\n<div class="facts">{html.escape(shown)}</div>\n</div>\n</article>'
    )


def _corrupted_figure(sheet: _Sheet, example: Example) -> str:
    if sheet.corruption is None:
        return '<div class="missing">no corrupted picture: corruption=none</div>'
    lacking = sheet.corruption.lacks(example)
    if lacking is not None:
        return f'<div class="missing">no corrupted picture: this record {html.escape(lacking)}</div>'
    source = corrupted_image(sheet.corruption, example)
    unchanged = source.content_hash() == example.image.content_hash()
    return _figure(source, "corrupted: this picture stays as it is" if unchanged else "corrupted", sheet.picture_side)


def _figure(source: ImageSource, caption: str, side: int) -> str:
    picture = source.load().copy()
    size = f"{picture.width} x {picture.height}"
    kind = ' class="enlarged"' if max(picture.size) < side else ""
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    content = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<figure><img{kind} alt="{html.escape(caption)}" src="data:image/png;base64,{content}">'
        f"<figcaption>{html.escape(caption)}, {size}</figcaption></figure>"
    )


def _marked(chosen: str | None, rejected: str | None) -> tuple[str, str]:
    """Both answers as HTML, with the words marked that are not part of a run of words both share; nothing is marked without a second."""
    if chosen is None or rejected is None:
        return html.escape(chosen or "(none)"), html.escape(rejected or "(none)")
    words = chosen.split(), rejected.split()
    blocks = SequenceMatcher(None, *words, autojunk=False).get_matching_blocks()
    shared = {block.a + step for block in blocks for step in range(block.size)}, {b.b + step for b in blocks for step in range(b.size)}
    return _with_marks(chosen, shared[0]), _with_marks(rejected, shared[1])


def _with_marks(text: str, shared: set[int]) -> str:
    pieces: list[str] = []
    number = 0
    for piece in re.findall(r"\s+|\S+", text):
        is_word = not piece.isspace()
        pieces.append(f"<mark>{html.escape(piece)}</mark>" if is_word and number not in shared else html.escape(piece))
        number += is_word
    return "".join(pieces)
