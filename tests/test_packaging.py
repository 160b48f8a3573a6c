"""The project as a thing to install and to read: wheel, pins, links, and nothing of the machine it was written on."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.check_wheel import build_wheel, problems_of

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [Requirement(line) for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
PACKAGES = ("medvlm_dpo", "launch", "hydra_plugins")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if not line.startswith("#")}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_tested_version_lies_in_the_promised_range(requirement: Requirement):
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_every_line_of_the_constraints_pins_one_version_for_any_index():
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_direct_dependency_stands_in_the_third_party_list(requirement: Requirement):
    assert f"| {requirement.name} |" in (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")


def imported_packages() -> set[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}}


def test_what_the_code_imports_is_declared():
    names = {"PIL": "pillow", "hydra": "hydra-core", "yaml": "PyYAML"}
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    optional = {
        canonicalize_name(Requirement(line).name) for name in ("wandb", "slurm", "gpu") for line in PROJECT["optional-dependencies"][name]
    }
    foreign = imported_packages() - set(sys.stdlib_module_names) - set(PACKAGES)
    assert {name for name in foreign if canonicalize_name(names.get(name, name)) not in declared | optional} == set()


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        if not link.startswith("https://") and (not file.exists() or (anchor and anchor not in anchors(file))):
            broken.append(link)
    assert broken == []


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_names_a_place_on_the_machine_it_was_written_on():
    places = [bytes([47]) + name for name in (b"work/", b"home/", b"root/", b"tmp/venv", b"opt/wheels")] + [b".." + b"/shared"]
    found = [f"{path.relative_to(ROOT)}: {place.decode()}" for path in tracked_files() for place in places if place in path.read_bytes()]
    assert found == []


def test_package_files_hold_a_docstring_only():
    files = [path for package in ("medvlm_dpo", "launch") for path in (ROOT / package).rglob("__init__.py")]
    bodies = {path: ast.parse(path.read_text(encoding="utf-8")).body for path in files}
    assert files
    assert [path for path, body in bodies.items() if len(body) != 1 or ast.get_docstring(ast.Module(body, [])) is None] == []


def test_the_command_and_the_readers_of_results_start_without_torch():
    modules = ["launch.main", "medvlm_dpo.errors", "medvlm_dpo.files", "medvlm_dpo.metrics", "medvlm_dpo.governance"]
    for package in ("launch", "medvlm_dpo/config", "medvlm_dpo/results", "medvlm_dpo/report", "medvlm_dpo/statistics"):
        modules += [
            ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / package).rglob("*.py") if path.stem != "__init__"
        ]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print([name for name in ('torch', 'transformers', 'pytorch_lightning', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_wheel_holds_everything(wheel: Path):
    assert problems_of(wheel) == []


@pytest.mark.slow
def test_the_command_works_from_the_wheel_alone(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = "import sys, launch.main; print(launch.main.__file__); sys.exit(launch.main.main())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", program, "--cfg", "job"], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert "medvlm_dpo.objectives.contrastive.dpo" in done.stdout
    assert list(elsewhere.iterdir()) == []
