"""Builds the wheel and compares it with the tree: `python tests/check_wheel.py`. Exit code 1 and one line per problem if it differs."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# folder in the tree -> folder in the wheel
CONTENT = {"medvlm_dpo": "medvlm_dpo", "launch": "launch", "hydra_plugins": "hydra_plugins", "conf": "medvlm_dpo/conf"}
ENTRY_POINT = "medvlm-dpo = launch.main:main"


def build_wheel(folder: Path) -> Path:
    """Builds the wheel into `folder` with the installed build backend: nothing is downloaded, the tree stays as it is."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the wheel does not build:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return next(folder.glob("medvlm_dpo-*.whl"))


def expected_files() -> set[str]:
    """Names, as they must stand in the wheel, of every file below the packaged folders."""
    return {
        f"{target}/{path.relative_to(ROOT / source).as_posix()}"
        for source, target in CONTENT.items()
        for path in (ROOT / source).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def problems_of(wheel: Path) -> list[str]:
    """One sentence for each way in which the wheel differs from the tree."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next((archive.read(name).decode() for name in names if name.endswith("/entry_points.txt")), "")
    inside = {name for name in names if ".dist-info/" not in name}
    problems = [f"{name} is in the tree but not in the wheel" for name in sorted(expected_files() - inside)]
    problems += [f"{name} is in the wheel but not in the tree" for name in sorted(inside - expected_files())]
    if ENTRY_POINT not in entry_points:
        problems.append(f"the console script `{ENTRY_POINT}` is missing")
    needed = {"configuration": "medvlm_dpo/conf/config.yaml", "Hydra plugin": "hydra_plugins/medvlm_dpo_launcher/"}
    for what, start in needed.items():
        if not any(name.startswith(start) for name in inside):
            problems.append(f"the wheel has no {what} ({start})")
    if not any(name.startswith("medvlm_dpo/data/phantom/models/") and name.endswith(".safetensors") for name in inside):
        problems.append("the wheel has no built-in model (medvlm_dpo/data/phantom/models/*/*.safetensors)")
    if any(name.startswith("hydra_plugins/__init__") for name in inside):
        problems.append("hydra_plugins/__init__.py would hide other people's Hydra plugins; remove it")
    return problems


def main() -> int:
    """Builds, compares, prints."""
    folder = Path(tempfile.mkdtemp(prefix="medvlm_dpo_wheel_"))
    try:
        wheel = build_wheel(folder)
        problems = problems_of(wheel)
        size = wheel.stat().st_size / 1e6
    finally:
        shutil.rmtree(folder)
    print("\n".join(problems) or f"wheel: {len(expected_files())} files, {size:.1f} MB, complete")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
