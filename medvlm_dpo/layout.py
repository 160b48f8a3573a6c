"""Which layout a run uses, and why."""

from medvlm_dpo.backbones.base import AbstractBackbone
from medvlm_dpo.data.segments import Layout, PackedLayout, PlainLayout


def chosen_layout(layout: str, backbone: AbstractBackbone, *, row_tokens: int) -> Layout:
    """The layout of a run; prints which and why.

    Args:
        layout: `auto` packs wherever the backbone allows it, `plain` never does.
        backbone: says whether packed rows would give the same values.
        row_tokens: of a packed row, as `PackedLayout` takes it.
    """
    obstacle = "trainer.layout=plain" if layout == "plain" else backbone.packing_obstacle()
    if obstacle is not None:
        print(f"layout: plain ({obstacle})")
        return PlainLayout()
    print("layout: packed, answers share picture and question")
    return PackedLayout(backbone.encoder.image_token_id, row_tokens)
