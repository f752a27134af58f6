"""Checkpoints: going on to the last bit, whatever stopped the run, and nothing else is taken up."""

from __future__ import annotations

import contextlib
import copy
import errno
import getpass
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support import run_worker, trainers
from support.damage import cut
from support.errors import refused
from support.runs import contents, results
from support.trainers import forget_accelerate, go_on, query_rows
from torch import Tensor

from rlhf_tutorial.errors import CheckpointError, DataError
from rlhf_tutorial.ppo import PPOTrainer, checkpoint
from rlhf_tutorial.ppo.math import RunningMoments

KILLS = int(os.environ.get("RLHF_KILLS", 4))


def make_trainer(**settings: Any) -> PPOTrainer:
    """A trainer at the start of a run: 14 rows in batches of 4, three a pass."""
    forget_accelerate()
    usual = {"layers": 2, "batch_size": 4, "mini_batch_size": 4, "ppo_epochs": 2, "seed": 3}
    return trainers.make_trainer(**usual | {"dataset": query_rows()} | settings)


def everything(trainer: PPOTrainer) -> dict[str, Any]:
    """All that a trainer goes on from, and the steps so far without their times."""
    scheduler = trainer.lr_scheduler
    return copy.deepcopy(
        {
            "weights": trainer.model.state_dict(),
            "reference": trainer.ref_model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "kl_coef": trainer.kl_coef,
            "moments": asdict(trainer.score_moments),
            "random": trainer.random.get_state(),
            "position": None if trainer.dataloader is None else trainer.dataloader.position,
            "logged": trainer.logged,
            "history": [
                {k: v for k, v in stats.items() if not k.startswith("time/")}
                for stats in trainer.history
            ],
        }
    )


def difference(a: Any, b: Any, path: str = "") -> str | None:
    """Where two nested structures are not the same to the last bit, if anywhere."""
    if type(a) is not type(b):
        return f"{path}: {type(a)} and {type(b)}"
    if isinstance(a, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return None if same else path
    if isinstance(a, (dict, list, tuple)):
        pairs = a.items() if isinstance(a, dict) else enumerate(a)
        if len(a) != len(b) or (isinstance(a, dict) and a.keys() != b.keys()):
            return f"{path}: other items"
        found = (difference(item, b[key], f"{path}/{key}") for key, item in pairs)
        return next((where for where in found if where), None)
    return None if a == b else f"{path}: {a} and {b}"


def test_the_comparison_sees_the_last_bit() -> None:
    a = {"x": [torch.ones(3), (1, 0.5)]}
    assert difference(a, copy.deepcopy(a)) is None
    assert difference(a, {"x": [torch.ones(3).nextafter(torch.zeros(3)), (1, 0.5)]}) == "/x/0"
    assert difference(a, {"x": [torch.ones(3).double(), (1, 0.5)]}) == "/x/0"
    assert difference(a, {"x": [torch.ones(3), (1, 0.5 + 2**-53)]}).startswith("/x/1/1")
    assert difference(a, {"x": [torch.ones(3), [1, 0.5]]}).startswith("/x/1")
    assert difference(a, a | {"y": None}) == ": other items"


# 1. To the last bit ---------------------------------------------------------------------------

ALL = {
    "mini_batch_size": 2,
    "target": 1.0,
    "horizon": 50,
    "use_score_scaling": True,
    "use_score_norm": True,
    "whiten_rewards": True,
    "max_grad_norm": 1.0,
}
schedulers = torch.optim.lr_scheduler
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, all settings": ALL,
    "trunk": {"shared": 1},
    "trunk, all settings": ALL | {"shared": 1},
    "GPT-2, tied head": ALL | {"kind": "gpt2"},
    "accumulation": {"mini_batch_size": 1, "gradient_accumulation_steps": 2},
    "bfloat16, trunk": ALL | {"shared": 1, "accelerator_kwargs": {"mixed_precision": "bf16"}},
    "SGD with momentum": ALL
    | {"optimizer": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True)},
    "plain SGD": {"optimizer": lambda p: torch.optim.SGD(p, lr=0.02)},
    "AdamW with all moments, by steps": ALL
    | {
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
        "scheduler": lambda o: schedulers.StepLR(o, 2, 0.5),
    },
    "NAdam in two groups, by milestones": {
        "optimizer": lambda p: torch.optim.NAdam(
            [{"params": p[:3]}, {"params": p[3:], "lr": 1e-2}], lr=1e-3
        ),
        "scheduler": lambda o: schedulers.MultiStepLR(o, [2, 4, 6], 0.3),
    },
    "a rate that is a tensor": {
        "optimizer": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3), foreach=False),
    },
    "one cycle, of the betas too": {
        "optimizer": lambda p: torch.optim.Adam(p),
        "scheduler": lambda o: schedulers.OneCycleLR(o, 1e-2, total_steps=20),
    },
    "warm-up, then a function": {
        "optimizer": lambda p: torch.optim.RMSprop(p, lr=1e-3),
        "scheduler": lambda o: schedulers.SequentialLR(
            o,
            [
                schedulers.LinearLR(o, 0.1, total_iters=3),
                schedulers.LambdaLR(o, lambda n: 1 / (n + 1)),
            ],
            [3],
        ),
    },
}


QUICK = ("full, all settings", "bfloat16, trunk")


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(case: str, tmp_path: Path) -> None:
    """Interrupted in the middle of a pass, at its end, and in the next one, by new trainers."""
    expected = go_on(make_trainer(**CASES[case]), until=7)
    for done, until in itertools.pairwise((0, 1, 3, 5, 7)):
        trainer = make_trainer(**CASES[case])
        assert trainer.resume(tmp_path) == done == len(trainer.history)
        go_on(trainer, until).save_checkpoint(tmp_path)
    assert difference(everything(expected), everything(trainer)) is None


def test_a_checkpoint_between_two_passes_begins_the_next(tmp_path: Path) -> None:
    """A pass may end at "12 rows used", or already stand at the start of the next one."""
    trainer = make_trainer()
    assert len(list(trainer.dataloader)) == 3
    assert trainer.dataloader.position == (1, 0)
    trainer.save_checkpoint(tmp_path)
    expected = [batch["input_ids"] for batch in trainer.dataloader]
    again = make_trainer()
    again.resume(tmp_path)
    assert difference([batch["input_ids"] for batch in again.dataloader], expected) is None
    again.dataloader.go_to(0, 12)
    assert list(again.dataloader) == []
    assert again.dataloader.position == (1, 0)
    assert difference([batch["input_ids"] for batch in again.dataloader], expected) is None


PARTS: dict[str, Callable[[PPOTrainer], Any]] = {
    "weights": lambda t: t.model.v_head.weight.data.mul_(1.001),
    "optimizer": lambda t: t.optimizer.state.clear(),
    "scheduler": lambda t: t.lr_scheduler.load_state_dict({"last_epoch": 1}),
    "kl_coef": lambda t: setattr(t, "kl_coef", t.config.init_kl_coef),
    "moments": lambda t: setattr(t, "score_moments", RunningMoments()),
    "random": lambda t: t.random.manual_seed(t.config.seed),
    "position": lambda t: t.dataloader.go_to(0, 0),
    "logged": lambda t: setattr(t, "logged", 0),
    "history": lambda t: t.history[0].update({"ppo/mean_scores": 9.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_no_part_of_a_checkpoint_could_be_missing(part: str, tmp_path: Path) -> None:
    """Without any one of them the run goes on otherwise, and the comparison sees it."""
    case = CASES["AdamW with all moments, by steps"]
    trainer = go_on(make_trainer(**case), until=2)
    trainer.save_checkpoint(tmp_path)
    expected = everything(go_on(trainer, until=5))
    for change in (lambda _: None, PARTS[part]):
        again = make_trainer(**case)
        again.resume(tmp_path)
        change(again)
        result = everything(go_on(again, until=5))
        same = change is not PARTS[part]
        assert (difference(result, expected) is None) == same
        if part not in ("logged", "history"):
            assert (difference(result["weights"], expected["weights"]) is None) == same


def test_the_same_trainer_can_go_back_even_in_the_middle_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook, where the cell is run again: half a step and its gradients are undone."""
    case = CASES["accumulation"] | {"kind": "gpt2"}
    expected = everything(go_on(make_trainer(**case), until=3))
    trainer = go_on(make_trainer(**case), until=2)
    trainer.save_checkpoint(tmp_path)

    calls = itertools.count(1)
    update = trainer.update

    def torn(*args: Any) -> Any:
        stats = update(*args)
        if next(calls) == 3:  # the first of an update's two mini-batches
            raise KeyboardInterrupt
        return stats

    monkeypatch.setattr(trainer, "update", torn)
    with pytest.raises(KeyboardInterrupt):
        go_on(trainer, until=3)
    assert any(p.grad is not None for p in trainer.model.parameters())
    monkeypatch.undo()
    assert trainer.resume(tmp_path) == 2
    assert difference(everything(go_on(trainer, until=3)), expected) is None


def test_a_checkpoint_is_not_changed_by_the_run_that_took_it_up(tmp_path: Path) -> None:
    go_on(make_trainer(), until=2).save_checkpoint(tmp_path)
    before = contents(tmp_path)
    expected = everything(go_on(make_trainer(), until=3))
    trainer = make_trainer()
    trainer.resume(tmp_path)
    go_on(trainer, until=3)
    assert contents(tmp_path) == before

    trainer = make_trainer()
    trainer.resume(tmp_path)
    for path in filter(Path.is_file, tmp_path.rglob("*")):  # nor does the run read it later
        path.write_bytes(bytes(path.stat().st_size))
    assert difference(everything(go_on(trainer, until=3)), expected) is None


def test_the_scale_of_float16_is_kept(tmp_path: Path) -> None:
    """There is float16 on a GPU only; the scaler alone works here as well."""
    scale = {"scale": 4.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    scale["_growth_tracker"] = 7
    trainers = [make_trainer(), make_trainer()]
    for trainer in trainers:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainers[0].accelerator.scaler.load_state_dict(scale)
    trainers[0].save_checkpoint(tmp_path)
    trainers[1].resume(tmp_path)
    assert trainers[1].accelerator.scaler.state_dict() == scale


def test_saving_and_resuming_leave_random_state_alone(
    tmp_path: Path, unchanged_random_state: None
) -> None:
    trainer = make_trainer()
    trainer.save_checkpoint(tmp_path)
    trainer.resume(tmp_path)


def test_without_a_checkpoint_nothing_is_done(tmp_path: Path) -> None:
    trainer = make_trainer()
    before = everything(trainer)
    (tmp_path / "empty").mkdir()
    assert trainer.resume(tmp_path / "nowhere") == trainer.resume(tmp_path / "empty") == 0
    assert difference(everything(trainer), before) is None


# 2. Killed at any moment ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """SIGKILL in the middle of a save, at each moment of it in turn, and at any other time.

    4 times; RLHF_KILLS=20 makes it more, in a longer run.
    """
    epochs = 1 + KILLS // 4
    whole = tmp_path / "whole"
    assert finished(run_worker.start(run_worker.training, whole, epochs))
    expected = results(whole)
    assert len(expected["log"]) == 12 * epochs
    draw, kills = random.Random(KILLS), 0
    moments = itertools.cycle(draw.sample(run_worker.MOMENTS, len(run_worker.MOMENTS)))
    for attempt in itertools.count():
        folder = tmp_path / f"killed{attempt}"
        folder.mkdir()
        for made in ("initial_policy", "prompts"):  # these are not what is tested here
            shutil.copytree(whole / made, folder / made)
        while True:
            inside = kills < KILLS and kills % 2 == 0
            stop = (next(moments), draw.choice((1, 2))) if inside else None
            receiver, sender = multiprocessing.Pipe(duplex=False)
            process = run_worker.start(run_worker.training, folder, epochs, stop, sender)
            sender.close()
            if kills < KILLS and not inside:
                wait_and_kill(process, receiver, draw)
            if finished(process):
                break
            kills += 1
        starts = [int(line) for line in (folder / "starts").read_text().split()]
        assert starts == sorted(starts), "a kill cost a checkpoint"
        assert results(folder) == expected
        assert not list(folder.glob("checkpoints*"))
        if kills >= KILLS:
            break
    assert max(starts) > 1, "every start began anew"


def finished(process: Any) -> bool:
    """Whether it ended by itself; False if it was killed."""
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode == 0


def wait_and_kill(process: Any, news: Any, draw: random.Random) -> None:
    """Kill after a few steps and a moment; it may be over by then."""
    with contextlib.suppress(EOFError):
        for _ in range(draw.randint(1, 4)):
            news.recv()
        time.sleep(draw.uniform(0, 0.1))
    process.kill()


# 3. Damaged and foreign ---------------------------------------------------------------------------

TENSORS, STATE, HASHES = "tensors.safetensors", "state.json", "sha256.json"
FILES = (TENSORS, STATE, HASHES)


@pytest.fixture(scope="module")
def _saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    trainer = make_trainer(**ALL)
    for until in (1, 2):
        go_on(trainer, until).save_checkpoint(folder)
    return folder


@pytest.fixture
def saved(_saved: Path, tmp_path: Path) -> Path:
    """A folder with checkpoints after one and two steps, to be spoilt."""
    return Path(shutil.copytree(_saved, tmp_path / "saved"))


def newest(folder: Path, name: str = "") -> Path:
    return folder / "step-00000002" / name


def rewrite(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change a checkpoint's numbers, and its hashes with them."""
    path = folder / STATE
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES[:2]}
    (folder / HASHES).write_text(json.dumps(hashes))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tensors cut short": (lambda f: cut(f / TENSORS), f"{TENSORS} was cut short or altered"),
    "state cut short": (lambda f: cut(f / STATE), f"{STATE} was cut short or altered"),
    "hashes cut short": (lambda f: cut(f / HASHES), "it is not complete"),
    "empty tensors": (lambda f: (f / TENSORS).write_bytes(b""), f"{TENSORS} was cut short"),
    "no tensors": (lambda f: (f / TENSORS).unlink(), "it is not complete (FileNotFoundError)"),
    "no state": (lambda f: (f / STATE).unlink(), "it is not complete (FileNotFoundError)"),
    "no hashes": (lambda f: (f / HASHES).unlink(), "it is not complete (FileNotFoundError)"),
    "hashes of another kind": (lambda f: (f / HASHES).write_text("[1]"), "it is not complete"),
    "a file in its place": (
        lambda f: (shutil.rmtree(f), f.write_text("x")),
        "it is not complete (NotADirectoryError)",
    ),
    "an empty folder": (
        lambda f: (shutil.rmtree(f), f.mkdir()),
        "it is not complete (FileNotFoundError)",
    ),
    "another step's state": (
        lambda f: shutil.copy(f.with_name("step-00000001") / STATE, f / STATE),
        f"{STATE} was cut short or altered",
    ),
    "a later format": (
        lambda f: rewrite(f, lambda state: state | {"format": 3}),
        "it is not of the format that this version reads, 2",
    ),
    "no format": (lambda f: rewrite(f, lambda _: []), "it is not of the format"),
    "weights of other names": (
        lambda f: rename_weights(f),
        "it is of another model: policy.head.bias does not fit",
    ),
}


def rename_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {k.replace("v_head.", "head."): v for k, v in load_file(folder / TENSORS).items()}
    save_file({k: v.clone() for k, v in tensors.items()}, folder / (TENSORS + "2"))
    (folder / (TENSORS + "2")).replace(folder / TENSORS)
    rewrite(folder, lambda state: json.loads(json.dumps(state).replace("v_head.", "head.")))


def one_line(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert len(record.getMessage().splitlines()) == 1
    return record.getMessage()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(
    damage: str, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, reason = DAMAGE[damage]
    spoil(newest(saved))
    trainer = make_trainer(**ALL)
    assert trainer.resume(saved) == 1
    message = one_line(caplog)
    assert message.startswith(f"{newest(saved)} cannot be used: {reason}")
    assert message.endswith("; going on from step-00000001")
    expected = go_on(make_trainer(**ALL), until=3)
    assert difference(everything(go_on(trainer, until=3)), everything(expected)) is None


@pytest.mark.parametrize("name", FILES)
def test_any_altered_byte_is_noticed(
    name: str, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(saved / "step-00000001")
    path, trainer = newest(saved, name), make_trainer(**ALL)
    good, before = path.read_bytes(), everything(trainer)
    draw = random.Random(name)
    places = range(len(good)) if len(good) < 300 else [0, *draw.sample(range(len(good)), 30), -1]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        with refused(CheckpointError, "cannot be used"):
            trainer.resume(saved)
    assert difference(everything(trainer), before) is None
    path.write_bytes(good)
    assert trainer.resume(saved) == 2
    assert not caplog.records


def test_if_none_can_be_used_the_error_says_what_where_and_what_to_do(saved: Path) -> None:
    cut(newest(saved, TENSORS))
    (saved / "step-00000001" / STATE).unlink()
    trainer = make_trainer(**ALL)
    before = everything(trainer)
    with refused(
        CheckpointError,
        f"{newest(saved)} cannot be used",
        "was cut short or altered",
        f"delete {saved} to start anew",
    ):
        trainer.resume(saved)
    assert difference(everything(trainer), before) is None


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "learning rate": ({"learning_rate": 2e-3}, "learning_rate is 0.001 there, 0.002 here"),
    "seed": ({"seed": 4}, "seed is 3 there, 4 here"),
    "epochs": ({"ppo_epochs": 1}, "ppo_epochs is 2 there, 1 here"),
    "KL": ({"kl_penalty": "abs"}, "kl_penalty is 'kl' there, 'abs' here"),
    "clipping": ({"max_grad_norm": None}, "max_grad_norm is 1.0 there, None here"),
    "batch": ({"batch_size": 2}, "batch_size is 4 there, 2 here"),
    "mini-batch": ({"mini_batch_size": 4}, "mini_batch_size is 2 there, 4 here"),
    "start weights": ({"weights": 1}, "model is '"),
    "frozen weights": ({"freeze": True}, "model is '"),
    "another size": ({"layers": 1}, "model is '"),
    "another architecture": ({"kind": "gpt2"}, "model is '"),
    "trunk": ({"shared": 1}, "num_shared_layers is 0 there, 1 here"),
    "precision": (
        {"accelerator_kwargs": {"mixed_precision": "bf16"}},
        "precision is 'no' there, 'bf16' here",
    ),
    "rows": ({"dataset": query_rows(15)}, "rows is 14 there, 15 here"),
    "system message": (
        {"dataset": [{"input_ids": row["input_ids"].flip(0)} for row in query_rows()]},
        "prompts is '",
    ),
    "no data": ({"dataset": None}, "rows is 14 there, None here"),
    "optimizer": (
        {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3)},
        "optimizer is 'Adam' there, 'SGD' here",
    ),
    "its own rate": (
        {"optimizer": lambda p: torch.optim.Adam(p, lr=1e-4)},
        "optimizer.lr is 0.001 there, 0.0001 here",
    ),
    "its betas": (
        {"optimizer": lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.9, 0.95))},
        "optimizer.betas is [0.9, 0.999] there, [0.9, 0.95] here",
    ),
    "its groups": (
        {"optimizer": lambda p: torch.optim.Adam([{"params": p[:1]}, {"params": p[1:]}], lr=1e-3)},
        "optimizer.groups is [",
    ),
    "scheduler": (
        {
            "optimizer": lambda p: torch.optim.Adam(p, lr=1e-3),
            "scheduler": lambda o: schedulers.StepLR(o, 2),
        },
        "scheduler is 'NoneType' there, 'StepLR' here",
    ),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_checkpoint_of_another_run_is_refused(foreign: str, saved: Path) -> None:
    settings, reason = FOREIGN[foreign]
    trainer = make_trainer(**ALL | settings)
    before = everything(trainer)
    with refused(CheckpointError, str(newest(saved)), "it is of another run", reason, "delete"):
        trainer.resume(saved)
    assert difference(everything(trainer), before) is None


def test_frozen_weights_count_where_the_reference_has_others(tmp_path: Path) -> None:
    """The checkpoint holds only what is trained: frozen weights must be the same already."""
    settings = {"other": 7, "distance": 1.0, "freeze": True}
    make_trainer(**settings).save_checkpoint(tmp_path)
    assert make_trainer(**settings).resume(tmp_path) == 0
    with refused(CheckpointError, "model is '"):
        make_trainer(**settings, weights=1).resume(tmp_path)


def test_names_and_trackers_may_change(saved: Path) -> None:
    names = {
        "exp_name": "second half",
        "model_name": "mine",
        "steps": 5,
        "tracker_project_name": "x",
    }
    assert make_trainer(**ALL, **names).resume(saved) == 2


# 4. Writing --------------------------------------------------------------------------------------


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    trainer = make_trainer()
    for steps in (9, 10, 99, 100, 101):
        trainer.history = [{"objective/kl": 0.0}] * steps
        trainer.save_checkpoint(tmp_path)
        assert len(list(tmp_path.iterdir())) <= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-00000101"]


def test_saving_does_not_delete_checkpoints_of_later_steps(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A script that forgot to resume must not lose what it has, nor what it saves now."""
    later = contents(saved)
    make_trainer(**ALL).save_checkpoint(saved)
    assert later.items() < contents(saved).items()
    assert (saved / "step-00000000").is_dir()
    for path in saved.glob(
        "step-*[12]"
    ):  # if the later ones cannot be used, the one just written is taken up
        cut(path / STATE)
    assert make_trainer(**ALL).resume(saved) == 0
    assert [record.getMessage()[-13:] for record in caplog.records] == ["step-00000000"] * 2


def test_a_checkpoint_is_safetensors_and_json_without_paths_or_names(tmp_path: Path) -> None:
    """Not even where the settings hold paths, names and a secret."""
    (tmp_path / "logs").mkdir()
    settings = {
        "model_name": str(tmp_path / "model"),
        "query_dataset": str(Path.home() / "queries"),
        "reward_model": f"/home/{getpass.getuser()}/judge",
        "project_kwargs": {"logging_dir": str(tmp_path / "logs")},
        "tracker_kwargs": {"wandb": {"api_key": "secret-token"}},
    }
    folder = tmp_path / "checkpoints"
    go_on(make_trainer(**ALL, **settings), until=1).save_checkpoint(folder)
    files = contents(folder)
    assert files.keys() == {f"step-00000001/{name}" for name in FILES}
    for name in (STATE, HASHES):
        json.loads((folder / "step-00000001" / name).read_text(encoding="utf-8"))
    with safe_open(folder / "step-00000001" / TENSORS, framework="pt") as file:
        assert not file.metadata()
        assert {name.split(".")[0] for name in file.keys()} == {"policy", "optimizer", "random"}  # noqa: SIM118
    for path in files:
        content = (folder / path).read_bytes()
        for word in (str(tmp_path), str(Path.home()), str(Path.cwd()), "/home/", "secret", "judge"):
            assert word.encode() not in content
        # No pickle, and no archive of pickles as torch.save writes it.
        assert not content.startswith((b"\x80", b"PK"))


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_and_fail(tensors: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(b"the first few bytes")
    no_room()


FAILURES: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "tensors": (checkpoint, "save_file", write_and_fail),
    "numbers": (Path, "write_text", no_room),
    "flush": (os, "fsync", no_room),
    "rename": (Path, "rename", no_room),
    "folder": (Path, "mkdir", no_room),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("again", [False, True], ids=["a further step", "the same step"])
def test_a_full_disk_leaves_the_earlier_checkpoints(
    failure: str, again: bool, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(saved)
    trainer = make_trainer(**ALL)
    trainer.resume(saved)
    if not again:
        go_on(trainer, until=3)
    trainer.logged += 1
    monkeypatch.setattr(*FAILURES[failure])
    target = saved / f"step-{len(trainer.history):08d}"
    with refused(
        CheckpointError, f"cannot write the checkpoint {target}", "No space left", "start again"
    ):
        trainer.save_checkpoint(saved)
    monkeypatch.undo()
    assert contents(saved) == before
    assert make_trainer(**ALL).resume(saved) == 2
    trainer.save_checkpoint(saved)  # and once there is room
    assert make_trainer(**ALL).resume(saved) == len(trainer.history)


def test_a_file_that_cannot_grow_is_an_error_in_one_line(saved: Path) -> None:
    """The system's own refusal, as it comes through safetensors."""
    resource = pytest.importorskip("resource")
    before, size = contents(saved), newest(saved, TENSORS).stat().st_size
    trainer = make_trainer(**ALL)
    trainer.resume(saved)
    go_on(trainer, until=3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with refused(CheckpointError, "cannot write the checkpoint", "File too large"):
            trainer.save_checkpoint(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(saved) == before


def test_what_json_does_not_hold_is_an_error_in_one_line(tmp_path: Path) -> None:
    trainer = make_trainer(optimizer=lambda p: torch.optim.Adam(p))
    trainer.optimizer.param_groups[0]["a note"] = {"a set"}
    with refused(CheckpointError, "cannot write the checkpoint", "set is not JSON"):
        trainer.save_checkpoint(tmp_path)


class Crash(BaseException):
    """The machine stops."""


@pytest.mark.parametrize("again", [False, True], ids=["a further step", "the same step"])
def test_there_is_a_checkpoint_at_every_moment(
    again: bool, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The machine stops before each call that changes the disk, in turn: a checkpoint is taken up.

    A step is saved again when a run is interrupted that has just been taken up.
    """
    trainer = make_trainer(**ALL)
    trainer.resume(saved)
    if not again:
        go_on(trainer, until=3)
    trainer.logged += 1
    wanted, calls = 0, 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > wanted:
                raise Crash
            return original(*args, **kwargs)

        return wrapped

    outcomes = []
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in [
            (checkpoint, "save_file"),
            (Path, "write_text"),
            (Path, "rename"),
            (os, "fsync"),
            (os, "unlink"),
            (os, "rmdir"),
        ]:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        while True:
            folder, calls = tmp_path / f"crash{wanted}", -(10**9)
            shutil.copytree(saved, folder)
            calls = 0
            try:
                trainer.save_checkpoint(folder)
            except Crash:
                wanted += 1
            else:
                break
            finally:
                calls = -(10**9)
            fresh = make_trainer(**ALL)
            outcomes.append((fresh.resume(folder), fresh.logged))
            trainer.save_checkpoint(folder)
            assert len(list(folder.iterdir())) == 2
    before, after = (2, 2), (2, 3) if again else (3, 4)
    assert set(outcomes) == {before, after}
    assert outcomes == sorted(outcomes)
    assert len(outcomes) > 8
    assert not caplog.records


# 5. The order of the data ------------------------------------------------------------------------


def order(seed: int = 3, passes: int = 1, n: int = 14, **settings: Any) -> list[list[int]]:
    """The rows of each batch of each pass."""
    data = [{"input_ids": torch.tensor([3]), "row": i} for i in range(n)]
    loader = make_trainer(dataset=data, seed=seed, **settings).dataloader
    return [[batch["row"] for batch in loader] for _ in range(passes)]


flat = itertools.chain.from_iterable


def test_the_order_follows_from_the_seed_and_the_pass_alone() -> None:
    three = order(passes=3)
    assert three == order(passes=3)
    assert three != order(seed=4, passes=3)
    assert three[0] != three[1] != three[2]
    # Not on the size of batches, on what the trainer has drawn, or on the caller's draws.
    torch.manual_seed(99)
    small = order(passes=3, batch_size=2, mini_batch_size=2)
    assert [list(flat(batches)) for batches in three] == [list(flat(b))[:12] for b in small]


def test_the_caller_draws_as_before(unchanged_random_state: None) -> None:
    order(passes=2)


@pytest.mark.parametrize("n", [4, 5, 7, 8, 14])
def test_a_pass_uses_each_row_at_most_once_and_all_over_the_passes(n: int) -> None:
    passes = order(passes=30, n=n)
    for batches in passes:
        assert [len(rows) for rows in batches] == [4] * (n // 4)
        used = list(flat(batches))
        assert len(set(used)) == len(used)
    assert set(flat(flat(passes))) == set(range(n))


def test_too_few_rows_for_a_batch_are_refused() -> None:
    with refused(DataError, "has 3 rows", "a step takes 4", "lower batch_size"):
        order(n=3)


def test_a_pass_that_was_left_is_gone_on_with() -> None:
    data = [{"input_ids": torch.tensor([3]), "row": i} for i in range(14)]
    loader, seen = make_trainer(dataset=data).dataloader, []
    for part in (1, 1, 1, 2):
        seen += [batch["row"] for batch in itertools.islice(loader, part)]
    assert seen == order(passes=2)[0]
    assert loader.position == (1, 0)


def test_go_to_takes_up_any_batch_and_refuses_what_is_none() -> None:
    passes = order(passes=2)
    data = [{"input_ids": torch.tensor([3]), "row": i} for i in range(14)]
    loader = make_trainer(dataset=data).dataloader
    for epoch, used in itertools.product((0, 1), (0, 4, 8, 12)):
        loader.go_to(epoch, used)
        assert loader.position == (epoch, used)
        assert [batch["row"] for batch in loader] == passes[epoch][used // 4 :]
        assert loader.position == (epoch + 1, 0)
    loader.go_to(1, 4)
    for used in (1, 6, 13):
        with refused(CheckpointError, f"{used} rows of the pass", "batches of 4", "batch size"):
            loader.go_to(0, used)
    assert loader.position == (1, 4)


def test_the_position_counts_what_was_handed_out() -> None:
    loader = make_trainer().dataloader
    seen = [loader.position for _ in loader]
    assert seen == [(0, 4), (0, 8), (0, 12)]
    assert loader.position == (1, 0)
