"""Short findings texts: a statement made of facts, its wording, and the same statement with one fact changed."""

from dataclasses import dataclass, replace

from medvlm_dpo.data.phantom.anatomy import MODALITIES, REGIONS, SIDES, SIZES, ZONES, Scene

COUNT_WORDS = ("none", "one", "two", "three")


@dataclass(frozen=True)
class Findings:
    """What a findings text states. `side`, `size` and `zone` are None where nothing is claimed about them.

    Args:
        count: number of lesions, 0 to 3.
        side: right, left or both; None without lesions.
        zone: stated for a single lesion only.
    """

    modality: str
    region: str
    count: int
    size: str | None
    side: str | None
    zone: str | None

    def sentence(self) -> str:
        """One sentence about the lesions in the clipped style of reports: `Two small lesions in the left kidney.`."""
        organ = REGIONS[self.region]
        if not self.count:
            return f"No lesion in the {organ.organs}."
        number, noun = COUNT_WORDS[self.count].capitalize(), "lesion" if self.count == 1 else "lesions"
        zone = f"the {self.zone} zone of " if self.zone else ""
        place = f"both {organ.organs}" if self.side == "both" else f"the {self.side} {organ.organ}"
        size = f"{self.size} " if self.size else ""
        return f"{number} {size}{noun} in {zone}{place}."

    def report(self) -> str:
        """Modality and region first, such as `CT of the chest. No lesion in the lungs.`."""
        return f"{self.modality} of the {self.region}. {self.sentence()}"


def findings_of(scene: Scene) -> Findings:
    """The true findings of a scene."""
    count = len(scene.lesions)
    return Findings(
        modality=scene.modality,
        region=scene.region,
        count=count,
        size=scene.size,
        side=scene.side,
        zone=scene.lesions[0].zone if count == 1 else None,
    )


def changed_findings(truth: Findings) -> tuple[tuple[str, Findings], ...]:
    """Every (error type, findings) that differs from the truth in exactly one stated fact.

    A lesion that is made up keeps to what the truth does not say: it is stated without size. The organ is named in every
    text, so a changed region changes one fact even though the report names it twice (chest, lung).
    """
    return (
        *(("modality", replace(truth, modality=value)) for value in MODALITIES if value != truth.modality),
        *(("anatomy", replace(truth, region=value)) for value in REGIONS if value != truth.region),
        *_changed_lesions(truth),
    )


def _changed_lesions(truth: Findings) -> tuple[tuple[str, Findings], ...]:
    if not truth.count:
        return tuple(("presence", replace(truth, count=1, side=side)) for side in SIDES)
    absent = replace(truth, count=0, size=None, side=None, zone=None)
    fewest = 2 if truth.side == "both" else 1  # one lesion cannot lie in both organs
    return (
        ("presence", absent),
        *(("size", replace(truth, size=value)) for value in SIZES if value != truth.size),
        *(("location", replace(truth, zone=value)) for value in ZONES if truth.zone and value != truth.zone),
        *(("laterality", replace(truth, side=value)) for value in SIDES if value != truth.side),
        *(("count", replace(truth, count=value)) for value in range(fewest, len(COUNT_WORDS)) if value != truth.count),
    )
