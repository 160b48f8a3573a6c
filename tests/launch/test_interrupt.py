"""Interrupted, killed and doubled commands."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from launch_world import World

T = TypeVar("T")


def wait_for_running_cell(world: World, process: subprocess.Popen[str]) -> Path:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        for cell in world.cells():
            if json.loads((cell / "status.json").read_text())["state"] == "running" and (cell / "runs.txt").is_file():
                return cell
        time.sleep(0.05)
    raise AssertionError("no cell began to run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_stops_the_cell_and_the_same_command_resumes(world: World, number: signal.Signals) -> None:
    arguments = ("trainer.behaviour=wait", f"trainer.until={world.folder / 'go'}")
    process = world.begin(*arguments)
    cell = wait_for_running_cell(world, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    status = json.loads((cell / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert not Path(f"/proc/{status['pid']}").exists(), "the cell's process has ended"
    (world.folder / "go").touch()
    assert world.run(*arguments).returncode == 0
    status = json.loads((cell / "status.json").read_text())
    assert (status["state"], status["attempt"]) == ("finished", 2)


def test_ctrl_c_of_a_terminal_reaches_the_cell_once(world: World) -> None:
    """A terminal signals the whole foreground group; cells live in a session of their own and hear the driver only."""
    arguments = ("trainer.behaviour=wait", f"trainer.until={world.folder / 'never'}")
    process = world.begin(*arguments)
    cell = wait_for_running_cell(world, process)
    pid = json.loads((cell / "status.json").read_text())["pid"]
    assert os.getsid(pid) != os.getsid(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert json.loads((cell / "status.json").read_text())["state"] == "interrupted"


def test_killed_cell_is_a_failure(world: World) -> None:
    process = world.begin("trainer.behaviour=wait", f"trainer.until={world.folder / 'never'}")
    cell = wait_for_running_cell(world, process)
    os.kill(json.loads((cell / "status.json").read_text())["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    status = json.loads((cell / "status.json").read_text())
    assert (status["state"], "SIGKILL" in status["message"]) == ("failed", True)


def test_two_commands_train_a_cell_once(world: World) -> None:
    arguments = ("trainer.behaviour=wait", f"trainer.until={world.folder / 'go'}")
    first = world.begin(*arguments)
    cell = wait_for_running_cell(world, first)
    second = world.begin(*arguments)
    assert second.stdout is not None
    for line in second.stdout:
        if "is being run by another command" in line:
            break
    (world.folder / "go").touch()
    outputs = [first.communicate(timeout=60)[0], second.communicate(timeout=60)[0]]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert (cell / "runs.txt").read_text().count("\n") == 1
    assert (cell / "trained.txt").read_text() == "once\n"


def test_dead_driver_leaves_no_lock(world: World) -> None:
    """After a SIGKILL of everything the same command runs the cell again."""
    arguments = ("trainer.behaviour=wait", f"trainer.until={world.folder / 'go'}")
    process = world.begin(*arguments)
    cell = wait_for_running_cell(world, process)
    os.kill(json.loads((cell / "status.json").read_text())["pid"], signal.SIGKILL)
    process.kill()
    process.communicate()
    (world.folder / "go").touch()
    done = world.run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((cell / "status.json").read_text())["state"] == "finished"


def test_politely_killed_cell_does_not_stop_the_others(world: World) -> None:
    """SIGINT to one cell's process, not to the command: that cell is interrupted, the rest of the sweep goes on."""
    process = world.begin("-m", f"trainer.until={world.folder / 'never'}", "trainer.behaviour=wait,work")
    cell = wait_for_running_cell(world, process)
    os.kill(json.loads((cell / "status.json").read_text())["pid"], signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert sorted(json.loads((folder / "status.json").read_text())["state"] for folder in world.cells()) == ["finished", "interrupted"]


def test_what_comes_before_the_cells_ends_with_a_killed_driver(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECOMPUTE", "wait")
    driver = world.begin()
    pid = int(until(lambda: "".join(file.read_text() for file in world.output.glob("cells/*/precompute.pid"))))
    driver.kill()
    driver.communicate()
    assert until(lambda: not Path(f"/proc/{pid}").exists() or "(zombie)" in Path(f"/proc/{pid}/status").read_text())


def until(look: Callable[[], T]) -> T:
    """What a look gives as soon as it is something."""
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.05)
    return found
