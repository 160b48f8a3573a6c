"""Preferences per error type: how training moved the held-out pairs of each kind."""

from collections.abc import Callable

from medvlm_dpo import metrics
from medvlm_dpo.report.cells import NOTHING, nats, percent
from medvlm_dpo.report.layout import Section
from medvlm_dpo.report.measures import pair_metric_spread
from medvlm_dpo.report.rows import Block, Row

CellText = Callable[[Row, str], str]


def preference_type_sections(block: Block) -> list[Section]:
    """Three tables with one column per error type; none when the pairs have no error types."""
    types = sorted({name for row in block.rows for cell in row.cells.values() for name in cell.pair_error_types})
    if not types:
        return []
    place = f"validation pairs per error type: {block.model}, data {', '.join(block.data)}"
    return [
        _section(f"preference_accuracy on the {place}", block, types, _accuracy, "In percent, mean ± standard deviation over seeds."),
        _section(f"preference_gain at its mean margin on the {place}", block, types, _gain, "In percent, at nats."),
        _section(f"Log-prob change, chosen / rejected, on the {place}", block, types, _changes, "In nats, summed over response tokens."),
    ]


def _section(title: str, block: Block, types: list[str], text: CellText, note: str) -> Section:
    rows = tuple((row.label, *(text(row, error_type) for error_type in types)) for row in block.rows if not row.is_start)
    return Section(title, ("loss", *types), rows, (note,))


def _accuracy(row: Row, error_type: str) -> str:
    return percent(pair_metric_spread(row, error_type, metrics.PREFERENCE_ACCURACY))


def _gain(row: Row, error_type: str) -> str:
    gain = pair_metric_spread(row, error_type, metrics.PREFERENCE_GAIN)
    margin = pair_metric_spread(row, error_type, metrics.PREFERENCE_MARGIN)
    return NOTHING if gain is None or margin is None else f"{percent(gain)} at {nats(margin)}"


def _changes(row: Row, error_type: str) -> str:
    chosen = pair_metric_spread(row, error_type, metrics.CHOSEN_LOGPS_CHANGE)
    rejected = pair_metric_spread(row, error_type, metrics.REJECTED_LOGPS_CHANGE)
    return NOTHING if chosen is None and rejected is None else f"{nats(chosen)} / {nats(rejected)}"
