from pathlib import Path

from medvlm_dpo.data.content import content_of, read_source
from medvlm_dpo.data.manifest import Manifest
from medvlm_dpo.data.records import ReadReport


class Drawn:
    """A source that knows no manifest and reads one file of its own."""

    data_class = "public"

    def __init__(self, file: Path, count: int) -> None:
        self.file, self.count = file, count

    def read(self) -> ReadReport:
        return ReadReport(num_records=self.count)

    def input_files(self) -> tuple[Path, ...]:
        return (self.file,)

    def recipe(self) -> dict[str, object]:
        return {"count": self.count}


def test_any_source_can_be_read_and_hashed(tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    file.write_text("one")
    source = Drawn(file, 3)
    assert read_source(source, Manifest()).num_records == 3
    first = content_of(source, Manifest())
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / "answers.json")
    assert content_of(Drawn(moved, 3), Manifest()) == first
    assert content_of(Drawn(moved, 4), Manifest()) != first
    moved.write_text("two")
    assert content_of(Drawn(moved, 3), Manifest()) != first
