"""A small world for the launcher: a conf folder of its own, and a checker, a runner and a table that cost nothing."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]

FAKES = dedent(
    '''
    """Stands in for the check, the runner and the table of the library. Imports no torch."""

    import json
    import os
    import signal
    import sys
    import time
    from pathlib import Path

    import yaml

    from medvlm_dpo.config.identity import CheckedCell
    from medvlm_dpo.errors import InputError
    from medvlm_dpo.files import write_json_atomic


    def check(configs, manifest_path, full):
        return [_check(config) for config in configs]


    def _check(config):
        problems = [] if config["loss"].get("beta", 1) > 0 else [f"loss.beta must be > 0, got {config['loss']['beta']}"]
        content = {"data": Path(config["data"]["path"]).read_text() if config["data"].get("path") else "built in", "model": "weights"}
        versions = {name: node["version"] for name, node in config["evaluation"]["graders"].items()}
        return CheckedCell(problems=problems, content=content, evaluation_content="questions", graders=versions)


    def bug(configs, manifest_path, full):
        raise KeyError("a bug in the check")


    def precompute(folders, threads):
        if os.environ.get("PRECOMPUTE") == "raise":
            raise KeyError("a bug in what comes first")
        if os.environ.get("PRECOMPUTE") == "wait":
            Path(folders[0], "precompute.pid").write_text(str(os.getpid()))
            time.sleep(60)
        print(f"precomputed for {len(folders)} cells with {threads} threads", flush=True)


    def run(folder):
        cell = yaml.safe_load((folder / "cell.yaml").read_text())
        behaviour = cell["config"].get("trainer", {}).get("behaviour", "work") if cell["kind"] == "train" else "work"
        print(f"running {cell['id']} as {os.getpid()}", flush=True)
        with (folder / "runs.txt").open("a") as stream:
            stream.write(f"{os.getpid()}\\n")
        if behaviour == "raise":
            raise ValueError("the numbers went wrong")
        if behaviour == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "lie":
            return 0
        if behaviour == "refuse":
            raise InputError("data: record 7 is broken")
        if behaviour == "wait":
            deadline = time.monotonic() + 60
            while not Path(cell["config"]["trainer"]["until"]).exists() and time.monotonic() < deadline:
                time.sleep(0.02)
        if not (folder / "result.json").is_file():
            with (folder / "trained.txt").open("a") as stream:
                stream.write("once\\n")
            write_json_atomic(folder / "result.json", {"id": cell["id"], "threads": os.environ["OMP_NUM_THREADS"]})
        for file in folder.glob("evaluations/*/evaluation.yaml"):
            asked = yaml.safe_load(file.read_text())
            grades = {name: {"version": version} for name, version in asked["grader_versions"].items()}
            file.with_name("predictions.parquet").touch()
            write_json_atomic(file.with_name("scores.json"), {"graders": grades})
        return 0


    def table(output_dir, name):
        return f"TABLE of {name}; torch imported: {'torch' in sys.modules}"
    '''
)

GROUPS: dict[str, dict[str, Any]] = {
    "model/tiny": {"checkpoint": "builtin:tiny", "width": 8},
    "model/other": {"checkpoint": "builtin:other", "width": 9},
    "data/pairs": {"path": None, "on_bad_record": "error"},
    "loss/steep": {"beta": 0.1},
    "loss/flat": {"slope": 0.5},
    "evaluation/quiz": {"name": "quiz", "graders": {"exact": {"version": "1"}}, "questions": {"split": "test"}},
    "evaluation/exam": {"name": "exam", "graders": {"exact": {"version": "1"}}, "questions": {"split": "exam"}},
    "trainer/quick": {"max_steps": 3, "micro_batch_size": 2, "behaviour": "work", "until": ""},
}
FUNCTIONS = {
    "checker": "launch_fakes.check",
    "precompute": "launch_fakes.precompute",
    "runner": "launch_fakes.run",
    "table": "launch_fakes.table",
}
DEFAULTS = ("model=tiny", "data=pairs", "loss=steep", "evaluation=quiz", "trainer=quick")


@dataclass(frozen=True)
class World:
    """A folder in which commands are given.

    Args:
        folder: the present folder of every command.
        begun: commands that were not waited for.
    """

    folder: Path
    begun: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.folder / "outputs"

    def cells(self, kind: str = "train") -> list[Path]:
        every = sorted(self.output.glob("cells/*/cell.yaml"))
        return [file.parent for file in every if yaml.safe_load(file.read_text())["kind"] == kind]

    def command(self, *arguments: str, task: str = "fake_train") -> list[str]:
        """A command line in which what the arguments leave open is small."""
        named = {argument.split("=")[0] for argument in arguments}
        chosen = [] if "task" in named else [f"task={task}"]
        defaults = [default for default in DEFAULTS if default.split("=")[0] not in named]
        flags = [] if "--config-dir" in arguments else ["--config-dir", str(self.folder / "conf")]
        return [sys.executable, str(ROOT / "run.py"), *flags, *chosen, *defaults, *arguments]

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MEDVLM_OUTPUT_DIR", "SLURM_CPUS_PER_TASK")}
        return {**kept, "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, *arguments: str, task: str = "fake_train") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, task=task),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a group of its own, as in a terminal
        )
        self.begun.append(process)
        return process

    def end_everything(self) -> None:
        """Kills what a failed test left running."""
        for file in self.output.glob("cells/*/status.json"):
            status = json.loads(file.read_text())
            if status["state"] == "running":
                with suppress(ProcessLookupError):
                    os.kill(status["pid"], signal.SIGKILL)
        for process in self.begun:
            if process.poll() is None:
                process.kill()
                process.communicate()


def write_choice(conf: Path, name: str, node: dict[str, Any]) -> None:
    """Writes one choice of a group."""
    file = conf / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(node))


def make_world(folder: Path) -> World:
    """A fresh world in an empty folder."""
    (folder / "launch_fakes.py").write_text(FAKES)  # found because it lies in the present folder of the command
    for name, node in GROUPS.items():
        write_choice(folder / "conf", name, node)
    for task in ("train", "evaluate"):
        functions = {name: function for name, function in FUNCTIONS.items() if task == "train" or name != "precompute"}
        write_choice(folder / "conf", f"task/fake_{task}", {"_target_": f"launch.tasks.{task}", "_partial_": True, **functions})
    return World(folder)
