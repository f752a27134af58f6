"""Ctrl-C, the stop button, SIGTERM: what was done is saved, and the run goes on from there."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import run_worker
from support.damage import cut
from support.errors import refused
from support.runs import results

from rlhf_tutorial import Run
from rlhf_tutorial import run as run_module
from rlhf_tutorial.errors import CheckpointError, TutorialError
from rlhf_tutorial.interruption import Interruption
from rlhf_tutorial.reward import rule_reward

BOTH = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """What a signal does in these tests, unless held back."""


@contextlib.contextmanager
def stopped(number: int | None = None) -> Iterator[None]:
    """The block ends by a signal, by this one if a number is given."""
    with pytest.raises(Stopped) as error:
        yield
    assert number is None or error.value.args == (number,)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in BOTH]


@pytest.fixture(autouse=True)
def signals() -> Iterator[list[Any]]:
    """Both signals raise `Stopped`. Whatever a test does, its handlers are there afterwards."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    before = [signal.signal(number, stop) for number in BOTH]
    mine = handlers()
    yield mine
    after = handlers()
    for number, handler in zip(BOTH, before, strict=True):
        signal.signal(number, handler)
    assert after == mine


# The holding back ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", BOTH)
def test_busy_work_is_finished_and_saved_before_the_signal_takes_effect(number: int) -> None:
    done: list[str] = []
    with stopped(number), Interruption(lambda: done.append("saved")) as interruption:
        with interruption.busy():
            signal.raise_signal(number)
            done.append("worked")
        done.append("not reached")
    assert done == ["worked", "saved"]


@pytest.mark.parametrize("number", BOTH)
def test_otherwise_it_saves_and_stops_at_once(number: int) -> None:
    done: list[str] = []
    with stopped(), Interruption(lambda: done.append("saved")) as interruption:
        with interruption.busy():
            done.append("worked")
        signal.raise_signal(number)
        done.append("not reached")
    assert done == ["worked", "saved"]


@pytest.mark.parametrize("second", BOTH)
def test_a_second_one_stops_at_once_without_saving(second: int) -> None:
    done: list[str] = []
    interruption = Interruption(lambda: done.append("saved"))
    with stopped(second), interruption, interruption.busy():
        signal.raise_signal(signal.SIGINT)
        done.append("worked")
        signal.raise_signal(second)
        done.append("not reached")
    assert done == ["worked"]


def test_a_second_one_stops_the_saving_too(signals: list[Any]) -> None:
    done: list[str] = []

    def save() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("saved")

    with stopped(), Interruption(save) as interruption, interruption.busy():
        signal.raise_signal(signal.SIGINT)
    assert done == []
    assert handlers() == signals


def test_an_error_in_the_work_or_in_saving_is_not_lost(signals: list[Any]) -> None:
    def save() -> None:
        raise CheckpointError("full")

    with pytest.raises(CheckpointError), Interruption(save) as interruption, interruption.busy():
        signal.raise_signal(signal.SIGINT)
    assert handlers() == signals
    with contextlib.suppress(ZeroDivisionError), Interruption(save) as interruption:
        with interruption.busy():
            signal.raise_signal(signal.SIGINT)
            _ = 1 / 0
        raise AssertionError("the error was lost")
    assert handlers() == signals


def test_handlers_are_those_of_before_after_any_end(signals: list[Any]) -> None:
    with Interruption(lambda: None):
        assert all(a != b for a, b in zip(handlers(), signals, strict=True))
    assert handlers() == signals
    with pytest.raises(KeyError), Interruption(lambda: None):
        raise KeyError
    assert handlers() == signals


def test_where_the_handler_of_before_lets_the_work_go_on_so_does_this() -> None:
    """A handler that only notes the signal and returns, as a server's: each means one save."""
    done: list[Any] = []
    signal.signal(signal.SIGTERM, note := lambda number, _: done.append(number))
    with Interruption(lambda: done.append("saved")) as interruption:
        for _ in range(2):
            with interruption.busy():
                signal.raise_signal(signal.SIGTERM)
            with interruption.busy():
                done.append("worked")
    assert done == ["saved", signal.SIGTERM, "worked"] * 2
    assert signal.getsignal(signal.SIGTERM) is note
    restore_stopping()


def restore_stopping() -> None:
    """Give SIGTERM the fixture's handler again, which SIGINT still has."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))


def test_a_signal_that_is_ignored_stays_so() -> None:
    """Under nohup, and for SIGINT in what a shell runs in the background."""
    done: list[str] = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Interruption(lambda: done.append("saved")) as interruption, interruption.busy():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert done == []
    restore_stopping()


def test_outside_the_main_thread_nothing_happens(signals: list[Any]) -> None:
    seen: list[Any] = []

    def work() -> None:
        with Interruption(lambda: seen.append("saved")) as interruption, interruption.busy():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signals]


def test_several_processes_stop_together_at_the_end_of_busy_work() -> None:
    """The one that was asked waits for the others, and one that was not stops with them."""
    asked: list[bool] = []
    done: list[str] = []
    answers = iter([False, False, True])

    def anywhere(here: bool) -> bool:
        asked.append(here)
        return next(answers)

    with stopped(signal.SIGINT), Interruption(lambda: done.append("saved"), anywhere) as work:
        with work.busy():
            done.append("worked")
        signal.raise_signal(signal.SIGINT)  # no stop yet: the other processes do not know of it
        for _ in range(3):
            with work.busy():
                done.append("worked")
    assert asked == [False, True, True]
    assert done == ["worked"] * 3 + ["saved"]

    def any_of_them(_: bool) -> bool:
        return True

    done.clear()
    work = Interruption(lambda: done.append("saved"), any_of_them)
    with stopped(signal.SIGTERM), work, work.busy():
        done.append("worked")
    assert done == ["worked", "saved"]


# Runs --------------------------------------------------------------------------------------------

PRESET = run_worker.preset(epochs=1)
STEPS = 12


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "CHECKPOINT_EVERY", 5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert len(list(Run(PRESET, folder).train())) == STEPS
    return folder


@pytest.fixture
def new_run(whole: Path, tmp_path: Path) -> Callable[[], Run]:
    """Begins the run, or opens its folder again. Policy and prompts are made already."""
    folder = tmp_path / "run"
    for made in ("initial_policy", "prompts"):
        shutil.copytree(whole / made, folder / made)
    return lambda: Run(PRESET, folder)


def checkpoints(run: Run) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run.folder / "checkpoints").glob("step-*"))


def signal_at(*steps: int, number: int = signal.SIGINT) -> Callable[..., list[float]]:
    """A reward during which signals come, in the steps of those numbers."""
    count = itertools.count(1)

    def reward(queries: list[str], responses: list[str]) -> list[float]:
        step = next(count)
        for _ in range(steps.count(step)):
            signal.raise_signal(number)
        return rule_reward(queries, responses)

    return reward


def log_lines(run: Run) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.folder / "stats.jsonl").read_text().splitlines()]


def test_a_signal_in_a_step_saves_that_step_and_the_run_goes_on_with_the_next(
    new_run: Callable[[], Run], whole: Path, signals: list[Any]
) -> None:
    run, seen = new_run(), []
    with stopped():
        for stats in run.train(reward=signal_at(7)):
            seen.append(stats["objective/kl"])
    assert len(seen) == 6, "the consumer sees the seventh when it is started again"
    assert handlers() == signals
    assert checkpoints(run) == [5, 7]
    assert len(log_lines(run)) == 7
    assert not (run.folder / "policy").exists()

    run = new_run()
    history = list(run.train())
    assert [stats["objective/kl"] for stats in history[:6]] == seen
    assert len(history) == len(log_lines(run)) == STEPS
    assert results(run.folder) == results(whole)
    assert not list(run.folder.glob("checkpoints*"))


def test_a_signal_while_the_consumer_has_the_stats_saves_at_once(
    new_run: Callable[[], Run], whole: Path, signals: list[Any]
) -> None:
    run = new_run()
    with stopped():
        for i, _ in enumerate(run.train(), start=1):
            if i == 3:
                signal.raise_signal(signal.SIGTERM)
                raise AssertionError("it was to stop")
    assert checkpoints(run) == [3]
    assert handlers() == signals
    with stopped():  # once more, while the stats of the steps done are handed out again
        for _ in new_run().train():
            signal.raise_signal(signal.SIGINT)
    assert checkpoints(run) == [3]
    list(new_run().train())
    assert results(run.folder) == results(whole)


def test_a_signal_before_the_first_step_and_in_the_last_one(
    new_run: Callable[[], Run], whole: Path
) -> None:
    with stopped():
        list(new_run().train(reward=signal_at(1)))
    assert checkpoints(new_run()) == [1]
    with stopped():
        list(new_run().train(reward=signal_at(STEPS - 1)))
    assert checkpoints(new_run()) == [10, STEPS]
    run = new_run()
    assert len(list(run.train(reward=no_reward))) == STEPS
    assert results(run.folder) == results(whole)


def no_reward(*_: Any) -> list[float]:
    raise AssertionError("a step was taken again")


def test_a_signal_during_a_regular_save_stops_after_it(
    new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not only at the next step: a consumer that asks for none would never be stopped."""
    run = new_run()
    trainer = run.make_trainer()
    save = trainer.save_checkpoint

    def interrupted_save(folder: Path) -> None:
        if len(trainer.history) == 5 and not checkpoints(run):
            signal.raise_signal(signal.SIGINT)
        save(folder)

    monkeypatch.setattr(trainer, "save_checkpoint", interrupted_save)
    seen = []
    with stopped():
        for stats in run.train(trainer):
            seen.append(stats)
    assert len(seen) == 4
    assert checkpoints(run) == [5]


def test_a_second_signal_stops_in_the_middle_of_the_step(
    new_run: Callable[[], Run], whole: Path, signals: list[Any]
) -> None:
    run = new_run()
    with stopped():
        list(run.train(reward=signal_at(7, 7)))
    assert checkpoints(run) == [5], "nothing was saved"
    assert handlers() == signals
    list(new_run().train())
    assert results(run.folder) == results(whole)


def test_the_same_trainer_goes_on_where_its_checkpoint_is(
    new_run: Callable[[], Run], whole: Path
) -> None:
    """A notebook's cell that is run again: after the stop button, and after an error in a step."""
    run = new_run()
    trainer = run.make_trainer()
    with stopped():
        list(run.train(trainer, signal_at(3)))
    with pytest.raises(AssertionError):
        list(run.train(trainer, no_reward))
    with stopped():
        list(run.train(trainer, signal_at(4, 4)))
    assert len(list(run.train(trainer))) == STEPS
    assert results(run.folder) == results(whole)
    with refused(TutorialError, "has taken 12 steps", str(run.folder), "run.make_trainer()"):
        next(run.train(trainer))
    assert results(run.folder) == results(whole), "and what there is stays"


@pytest.mark.parametrize("end", ["all of it", "break", "close", "exception"])
def test_a_run_puts_the_handlers_back(
    end: str, new_run: Callable[[], Run], signals: list[Any]
) -> None:
    steps = new_run().train(reward=signal_at() if end != "exception" else no_reward)
    if end == "all of it":
        assert len(list(steps)) == STEPS
    elif end == "exception":
        with pytest.raises(AssertionError, match="a step was taken"):
            next(steps)
    else:
        for _ in steps:
            assert handlers() != signals
            if end == "break":
                break
            steps.close()
        del steps
    assert handlers() == signals


def test_a_run_in_a_thread_leaves_the_handlers_alone(
    new_run: Callable[[], Run], whole: Path, signals: list[Any]
) -> None:
    run, seen = new_run(), []
    thread = threading.Thread(target=lambda: seen.extend(handlers() for _ in run.train()))
    thread.start()
    thread.join()
    assert seen == [signals] * STEPS
    assert results(run.folder) == results(whole)


def test_seconds_add_up_over_interruptions(
    new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step takes ten seconds by this clock, and a day passes before it is started again."""
    clock = [0.0]
    monkeypatch.setattr(run_module.time, "perf_counter", lambda: clock[0])

    def reward(queries: list[str], responses: list[str]) -> list[float]:
        clock[0] += 10
        return rule_reward(queries, responses)

    for stop in (3, 7):
        steps = new_run().train(reward=reward)
        with stopped():
            for i, _ in enumerate(steps, start=1):
                if i == stop:
                    signal.raise_signal(signal.SIGINT)
        del steps
        clock[0] += 24 * 3600
    run = new_run()
    assert len(list(run.train(reward=reward))) == STEPS
    assert [step["time/elapsed"] for step in log_lines(run)] == [10.0 * i for i in range(1, 13)]
    assert run.results()["training"]["seconds"] == 120
    assert run.results()["training"]["steps"] == STEPS


@pytest.mark.slow
def test_a_finished_run_is_trained_anew(new_run: Callable[[], Run], whole: Path) -> None:
    for _ in range(2):
        run = new_run()
        rewarded = signal_at()
        assert len(list(run.train(reward=rewarded))) == STEPS
        assert results(run.folder) == results(whole)
    with pytest.raises(
        AssertionError, match="a step was taken"
    ):  # so it begins with the first step
        list(new_run().train(reward=no_reward))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["policy", "checkpoints"])
def test_a_run_stopped_while_it_finishes_can_be_started_again(
    moment: str, new_run: Callable[[], Run], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half a policy saved, or half of the checkpoints deleted."""
    run = new_run()
    trainer = run.make_trainer()
    delete = shutil.rmtree

    def half_a_policy(folder: Path, **settings: Any) -> None:
        shutil.copytree(run.folder / "initial_policy", folder)
        (folder / "model.safetensors").unlink()
        raise Stopped

    def half_of_them(folder: Path, **settings: Any) -> None:
        if not folder.name.startswith("checkpoints") or not folder.exists():
            return delete(folder, **settings)
        for path in folder.rglob("*.safetensors"):
            path.unlink()
        raise Stopped

    if moment == "policy":
        monkeypatch.setattr(trainer, "save_pretrained", half_a_policy)
    else:
        monkeypatch.setattr(shutil, "rmtree", half_of_them)
    with stopped():
        list(run.train(trainer))
    monkeypatch.undo()
    assert (run.folder / "policy").exists() == (moment == "checkpoints")
    list(new_run().train())
    assert results(run.folder) == results(whole)
    assert {path.name for path in run.folder.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_damaged_checkpoint_ends_the_command_in_one_line(
    new_run: Callable[[], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_tutorial import presets
    from rlhf_tutorial.__main__ import main

    run = new_run()
    with stopped():
        list(run.train(reward=signal_at(2)))
    cut(run.folder / "checkpoints" / "step-00000002" / "state.json")
    monkeypatch.setitem(presets.PRESETS, "tiny", PRESET)
    with pytest.raises(SystemExit) as ended_by:
        main(["train", "--preset", "tiny", "--output", str(run.folder)])
    message = str(ended_by.value)
    assert message.startswith("error: ") and len(message.splitlines()) == 1
    assert "step-00000002 cannot be used" in message and "to start anew" in message


def test_settings_that_change_between_starts_are_refused(new_run: Callable[[], Run]) -> None:
    run = new_run()
    with stopped():
        list(run.train(reward=signal_at(2)))
    (run.folder / "settings.sha256").unlink()  # its check would refuse them first
    other = replace(PRESET, ppo=PRESET.ppo | {"learning_rate": 1e-4})
    with refused(CheckpointError, "learning_rate is 0.001 there, 0.0001 here"):
        next(Run(other, run.folder).train())


# In processes of their own ----------------------------------------------------------------------


def ended(process: Any) -> int:
    process.join(60)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("number", BOTH)
def test_a_process_that_is_asked_to_stop_saves_first(
    number: int, new_run: Callable[[], Run], whole: Path
) -> None:
    """With the system's own handlers. SIGTERM ends it as it ends any process."""
    folder = new_run().folder
    process = run_worker.start(run_worker.interrupted, folder, number, 4)
    assert ended(process) == (run_worker.CTRL_C if number == signal.SIGINT else -number)
    assert checkpoints(new_run()) == [2, 4]
    assert len((folder / "seen").read_text().split()) == 3
    process = run_worker.start(run_worker.interrupted, folder, number, 0)
    assert ended(process) == 0
    assert results(folder) == results(whole)
    seen = [float(line) for line in (folder / "seen").read_text().split()]
    assert seen[3:] == [step["objective/kl"] for step in log_lines(new_run())]
    assert seen[:3] == seen[3:6]


@pytest.mark.slow
def test_the_command_stopped_by_ctrl_c_says_so_in_one_line_and_goes_on(
    new_run: Callable[[], Run], tmp_path: Path
) -> None:
    folder, epochs = new_run().folder, 3
    (folder / "settings.sha256").unlink()
    process = run_worker.start(run_worker.command_line, folder, epochs)
    log = folder / "stats.jsonl"
    while process.is_alive() and not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 1
    printed = (tmp_path / "printed").read_text()
    message = "stopped; a training goes on from there when it is started again"
    assert printed.splitlines()[-1] == message
    assert "Traceback" not in printed
    done = len(log.read_text().splitlines())
    assert 2 <= done < STEPS * epochs
    assert max(checkpoints(new_run_of(folder, epochs))) == done

    process = run_worker.start(run_worker.command_line, folder, epochs)
    assert ended(process) == 0
    assert f"policy in {folder / 'policy'}" in (tmp_path / "printed").read_text()
    assert len(log.read_text().splitlines()) == STEPS * epochs
    assert not (folder / "checkpoints").exists()


def new_run_of(folder: Path, epochs: int) -> Run:
    return Run(run_worker.preset(epochs), folder)
