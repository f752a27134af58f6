"""Two real processes, started by torchrun, against one with the same rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from support import ROOT
from support import process_worker as worker
from support.process_worker import Result

from rlhf_tutorial.__main__ import main

pytestmark = pytest.mark.slow


def torchrun(*arguments: str | Path, timeout: float = 120) -> str:
    """Run it in two processes on the CPU; what they print. A hang is a failure."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    quiet["PYTHONPATH"] = str(ROOT / "tests")
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | quiet,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, to be ended as a whole
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"two processes hang: no end after {timeout} s\n{output[-4000:]}")
    assert process.returncode == 0, output[-6000:]
    return output


class Results(NamedTuple):
    """What the cases returned in two processes, and the folder of their checkpoints."""

    folder: Path
    ranks: tuple[Result, Result]

    def of(self, case: str) -> tuple[Result, Result]:
        """A case's results in the first process and in the second."""
        return tuple(part(rank, case) for rank in self.ranks)


def part(result: Result, prefix: str) -> Result:
    return {
        k.removeprefix(f"{prefix}/"): v for k, v in result.items() if k.startswith(f"{prefix}/")
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All cases of the worker, in two processes."""
    folder = tmp_path_factory.mktemp("two")
    one_saves = worker.saving(folder / "of-1")  # for them to resume
    torchrun("-m", worker.__name__, folder)
    ranks = tuple(load_file(folder / f"rank{i}.safetensors") for i in range(2))
    ranks[0].update(worker.prefixed("one saves", one_saves))
    return Results(folder, ranks)


def difference(a: Result, b: Result, prefix: str = "weights/") -> float:
    """The largest, over all tensors of that name."""
    return max((a[k] - b[k]).abs().max().item() for k in a if k.startswith(prefix))


def assert_equal(a: Result, b: Result, tolerance: float = 0.0) -> None:
    """All tensors equal, up to a tolerance that is relative where they are larger than 1."""
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_there_are_two_processes_and_gradients_are_added_between_them(two: Results) -> None:
    here = worker.connection()
    assert (here["torch"], here["accelerate"], here["wrapped"]) == (1, 1, 0)
    first, second = two.of("connection")
    for there in (first, second):
        assert (there["torch"], there["accelerate"], there["wrapped"]) == (2, 2, 1)
    assert len({int(r["process"]) for r in (here, first, second)}) == 3


# 1. A step is that of one process on all rows ----------------------------------------------------


@pytest.mark.parametrize("case", worker.STEPS)
def test_a_step_of_two_processes_is_the_step_of_one(case: str, two: Results) -> None:
    lengths = torch.tensor(worker.RESPONSES).chunk(2)
    assert lengths[0].max() > lengths[1].max() and lengths[0].sum() != lengths[1].sum()
    first, second = two.of(case)
    assert_equal(first, second)
    one = worker.CASES[case](two.folder)
    assert "step0/objective/kl" in one and "step0/ppo/loss/total" in one
    assert_equal(first, one, 1e-5)
    assert (
        difference(
            one,
            worker.weights(
                worker.make_trainer(
                    **{
                        k: v
                        for k, v in worker.STEPS[case].items()
                        if k in ("kind", "shared", "lora")
                    }
                )
            ),
        )
        > 1e-3
    ), "the step must move the weights by far more than the tolerance"


def test_a_step_in_bfloat16_is_near_that_of_one(two: Results) -> None:
    first, second = two.of("bfloat16")
    assert_equal(first, second)
    one = worker.CASES["bfloat16"](two.folder)
    assert one["weights/pretrained_model.lm_head.weight"].dtype == torch.float32
    assert one["weights/pretrained_model.model.embed_tokens.weight"].dtype == torch.bfloat16
    assert difference(first, one) < 1e-2
    assert difference(first, one, "step0/ppo/loss/total") < 0.02


@pytest.mark.parametrize("trained", ["full", "trunk"])
@pytest.mark.parametrize("fault", worker.PLANTED)
def test_a_fault_of_several_processes_would_be_noticed(
    fault: str, trained: str, two: Results
) -> None:
    one = worker.CASES[trained](two.folder)
    first, second = two.of(f"{fault}, {trained}")
    assert max(difference(first, one), difference(second, one)) > 1e-3
    assert (difference(first, second) > 1e-3) == (fault == "submodule called directly")


# 2. Decisions are taken together -----------------------------------------------------------------


def test_a_mini_batch_is_skipped_by_the_ratio_of_all(two: Results) -> None:
    first, second = two.of("skipping")
    assert_equal(first, second)
    assert_equal(first, worker.CASES["skipping"](two.folder), 1e-5)
    of_all, lower, upper = first["means"]
    assert max(lower, 1) + 0.01 < of_all < upper - 0.01, "the processes would decide differently"
    assert_equal(part(part(first, "kept"), "weights"), part(part(first, "twice"), "weights"))
    assert_equal(part(part(first, "skipped"), "weights"), part(part(first, "once"), "weights"))


def test_epochs_stop_by_the_movement_of_all(two: Results) -> None:
    first, second = two.of("stopping")
    assert_equal(first, second)
    assert_equal(first, worker.CASES["stopping"](two.folder), 1e-5)
    of_all, lower, upper = first["means"]
    assert max(lower, 0) + 0.01 < of_all < upper - 0.01, "the processes would decide differently"
    assert first["goes on/passes"] == 3
    assert first["stops/passes"] == 2


@pytest.mark.parametrize("trained", ["full", "trunk"])
def test_a_gradient_that_is_not_finite_in_one_process_is_refused_in_all(
    trained: str, two: Results
) -> None:
    first, second = two.of(f"refusing, {trained}")
    assert first["refused"] == second["refused"] == 1
    assert_equal(first, second)
    assert_equal(part(first, "before"), part(first, "after"))
    assert_equal(first, worker.CASES[f"refusing, {trained}"](two.folder), 1e-5)
    assert difference(part(first, "before"), first) > 1e-3, "the step after it was sound"


# 3. Whole steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["full", "trunk"])
def test_processes_sample_for_themselves_and_keep_the_same_weights(
    trained: str, two: Results
) -> None:
    first, second = two.of(f"training, {trained}")
    own = {"answers"} | {k for k in first if k.startswith("rows")}
    assert len(own) == 5
    assert_equal(*({k: v for k, v in r.items() if k not in own} for r in (first, second)))
    assert {"kl_coef", "random", "position"} <= first.keys() - own
    answers = torch.cat([first["answers"], second["answers"]])
    assert len(answers.unique(dim=0)) == len(answers) == 16, "no answer to one query twice"


def test_each_process_gets_its_share_of_the_rows_of_one(two: Results) -> None:
    first, second = two.of("training, full")
    one = worker.CASES["training, full"](two.folder)
    for i in range(4):
        rows = first[f"rows{i}"], second[f"rows{i}"]
        assert [len(r) for r in rows] == [8, 8]
        assert torch.cat(rows).tolist() == one[f"rows{i}"].tolist()
        assert len(set(torch.cat(rows).tolist())) == 16
    assert torch.equal(first["position"], one["position"])


def test_a_process_that_samples_alone_does_not_disturb_the_others(two: Results) -> None:
    first, second = two.of("drawing alone")
    assert_equal(first, second)
    ratio = first["ppo/policy/ratio"][: 4 * max(worker.RESPONSES)]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-5)


def test_one_process_saves_the_policy(two: Results) -> None:
    from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead

    first, _ = two.of("publishing")
    folder = two.folder / "policy-of-2"
    assert [path.name for path in folder.glob("saved-by-*")] == ["saved-by-0"]
    saved = AutoModelForCausalLMWithValueHead.from_pretrained(folder).state_dict()
    assert_equal(part(first, "weights"), saved)


# 4. Checkpoints ----------------------------------------------------------------------------------


def assert_goes_on(saved: tuple[Result, ...], resumed: tuple[Result, ...]) -> None:
    """As if nothing had happened: state and rows are equal, the next step is to 1e-5."""
    rows = [torch.cat([r["next/rows"] for r in results]) for results in (saved, resumed)]
    assert torch.equal(*rows)
    saved, resumed = (
        [{k: v for k, v in r.items() if k not in ("next/rows", "done")} for r in results]
        for results in (saved, resumed)
    )
    for result in resumed:
        now, then = (
            {k: v for k, v in r.items() if not k.startswith("next/")} for r in (result, saved[0])
        )
        assert {"kl_coef", "position", "score_moments", "optimizer/0/exp_avg"} <= now.keys()
        assert_equal(now, then)
        assert_equal(result, saved[0], 1e-5)
    assert difference(saved[0], part(saved[0], "next")) > 5e-4


def test_a_checkpoint_of_two_processes_goes_on_in_one(two: Results) -> None:
    one = worker.CASES["resuming"](two.folder)
    assert one["done"] == 2
    assert_goes_on(two.of("saving"), (one,))


def test_a_checkpoint_of_one_process_goes_on_in_two(two: Results) -> None:
    resumed = two.of("resuming")
    assert resumed[0]["done"] == resumed[1]["done"] == 2
    assert_goes_on((part(two.ranks[0], "one saves"),), resumed)


# 5. The command ----------------------------------------------------------------------------------


def test_the_command_trains_in_two_processes(tmp_path: Path) -> None:
    from datasets import load_from_disk

    from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead

    printed = torchrun("-m", "rlhf_tutorial", "train", "--preset", "tiny", "--output", tmp_path)
    assert printed.count("policy in") == 1
    assert printed.count("2/2") <= 2, "one progress bar"
    log = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    queries = load_from_disk(str(tmp_path / "prompts" / "train"))
    assert len(queries) == 64 and len(log) == 2, "two steps of twice 16 prompts"
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([len(ids) for ids in queries["input_ids"]])[order].double()
    for step, those_of_the_step in zip(log, lengths.chunk(2), strict=True):
        assert step["tokens/queries_len_mean"] == pytest.approx(those_of_the_step.mean().item())
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["training"]["steps"] == 2
    AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "policy")
    assert not (tmp_path / "checkpoints").exists()
    assert not list(tmp_path.glob("**/*.partial"))


@pytest.mark.parametrize("stage", ["prepare", "compare", "perplexity"])
def test_other_stages_refuse_several_processes(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        main([stage, "--preset", "tiny", "--output", str(tmp_path / "run")])
    assert stop.value.code == f"error: {stage} runs in one process: start it without a launcher"
    assert not (tmp_path / "run").exists()
