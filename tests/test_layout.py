"""Which layout a run uses, and that its log says why."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from core_world import make_backbone

from medvlm_dpo.data.segments import Layout, PackedLayout, PlainLayout
from medvlm_dpo.layout import chosen_layout


def with_text_config(model: Path, folder: Path, **changes: Any) -> Path:
    """A copy whose language model is configured otherwise."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


PACKED = "layout: packed, answers share picture and question\n"
PLAIN = "layout: plain ({})\n"
SHORT = PLAIN.format("the language model looks back 511 tokens only, fewer than model.max_length")
UNKNOWN = PLAIN.format("equal values are tested for llama, mistral, qwen2; the language model is a cohere2")


@pytest.mark.parametrize(
    ("layout", "changes", "expected", "line"),
    [
        ("auto", {}, PackedLayout, PACKED),
        ("plain", {}, PlainLayout, PLAIN.format("trainer.layout=plain")),
        ("auto", {"sliding_window": 512}, PackedLayout, PACKED),
        ("auto", {"sliding_window": 511}, PlainLayout, SHORT),
        ("auto", {"model_type": "qwen2", "sliding_window": 511, "use_sliding_window": False}, PackedLayout, PACKED),
        ("auto", {"model_type": "qwen2", "sliding_window": 511, "use_sliding_window": True}, PlainLayout, SHORT),
        ("auto", {"model_type": "cohere2"}, PlainLayout, UNKNOWN),
    ],
)
def test_choice_and_its_line(
    untrained_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    layout: str,
    changes: dict[str, Any],
    expected: type[Layout],
    line: str,
) -> None:
    backbone = make_backbone(with_text_config(untrained_model, tmp_path / "model", **changes), loaded=False)

    found = chosen_layout(layout, backbone, row_tokens=7)

    assert type(found) is expected
    assert capsys.readouterr().out == line
    if isinstance(found, PackedLayout):
        assert found == PackedLayout(backbone.encoder.image_token_id, row_tokens=7)
