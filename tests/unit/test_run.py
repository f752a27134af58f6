"""A run's folder: each stage leaves its work there, and the next one finds it."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from support.dialogues import dialogue
from support.errors import refused

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.__main__ import main
from rlhf_tutorial.data import PromptReport, last_reply
from rlhf_tutorial.errors import CheckpointError, TutorialError
from rlhf_tutorial.presets import Preset
from rlhf_tutorial.template import PromptTemplate
from rlhf_tutorial.training import train

TINY = replace(load_preset("tiny"), prompts=32, comparison_prompts=6, perplexity_texts=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of `tiny` with all stages done."""
    run = Run(TINY, tmp_path_factory.mktemp("run"))
    run.compare()  # trains first
    run.perplexity()
    return run


def test_stages_leave_open_formats(finished: Run) -> None:
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM

    folder = finished.folder
    assert len(load_from_disk(str(folder / "prompts" / "train"))) == 32
    report = json.loads((folder / "prompts" / "report.json").read_text())["train"]
    assert PromptReport(**report).kept == 32
    assert report["rows"] == 640
    assert AutoModelForCausalLM.from_pretrained(folder / "policy").config.vocab_size > 0
    assert (folder / "policy" / "value_head.safetensors").exists()
    steps = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert len(steps) == 2  # 32 prompts, 16 a step
    assert {"ppo/mean_scores", "objective/kl", "time/ppo/total"} <= steps[0].keys()


def test_results_hold_headline_seed_versions_and_time(finished: Run) -> None:
    results = finished.results()
    assert results["comparison"]["n"] == 6
    assert results["training"]["steps"] == 2
    assert results["training"]["seed"] == 0
    assert results["training"]["seconds"] > 0
    # A wheel's metadata may leave out the build, as in "2.13.0" for "2.13.0+cu130".
    assert results["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    if sys.platform == "linux":
        assert results["processor"] in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    gain = results["comparison"]["mean_after"] - results["comparison"]["mean_before"]
    assert results["comparison"]["mean_gain"] == pytest.approx(gain)


def test_a_second_run_reuses_what_is_there(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Run, "make_trainer", refuse)
    again = Run(TINY, finished.folder)
    assert again.compare().equals(again.compare())
    assert again.perplexity() == finished.perplexity()


def test_both_policies_answer_the_same_held_out_prompts(finished: Run) -> None:
    table = finished.compare()
    assert table["query"].tolist() == finished.queries("test")["query"][:6]
    assert not set(table["query"]) & set(finished.queries("train")["query"][:])


def test_training_again_drops_what_was_measured_on_the_old_policy(tmp_path: Path) -> None:
    run = Run(TINY, tmp_path)
    run.compare()
    for _ in run.train():
        pass
    assert not (tmp_path / "comparison.csv").exists()
    assert "comparison" not in run.results()


def test_same_seed_same_run(tmp_path: Path) -> None:
    logs = []
    for name in ("one", "two"):
        run = Run(TINY, tmp_path / name)
        for _ in run.train():
            pass
        logs.append([{k: v for k, v in s.items() if "time/" not in k} for s in run.stats()])
    assert logs[0] == logs[1]


def test_a_folder_belongs_to_one_set_of_settings(tmp_path: Path) -> None:
    Run(TINY, tmp_path)
    with pytest.raises(TutorialError, match="other settings"):
        Run(replace(TINY, prompts=48), tmp_path)


@pytest.mark.parametrize("saved", [False, True], ids=["a folder of files", "save_to_disk"])
def test_a_folder_belongs_to_the_data_that_it_was_begun_with(tmp_path: Path, saved: bool) -> None:
    data = tmp_path / "data"

    def write(question: str, split: str = "train") -> None:
        rows = [{"chosen": dialogue(question), "rejected": dialogue(question, "No.")}] * 20
        if saved:
            splits = {"train": rows, "test": [*rows]} | {split: rows}
            shutil.rmtree(data, ignore_errors=True)
            parts = {name: Dataset.from_list(part) for name, part in splits.items()}
            DatasetDict(parts).save_to_disk(str(data))
            return
        for name in ("train", "test") if not data.exists() else (split,):
            data.mkdir(exist_ok=True)
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (data / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    def queries(split: str = "train") -> set[str]:
        run = Run(replace(TINY, data=data), tmp_path / "run")
        return set(run.queries(split)["query"][:])

    write("How?")
    assert queries() == queries("test") == {"How?"}
    (data / "cache-1.arrow").write_bytes(b"what datasets leaves")
    write("How?")  # the same again
    assert queries() == {"How?"}
    write("Why?")
    with refused(TutorialError, f"the data in {data} have changed", "set RLHF_RUNS"):
        queries()
    if not saved:
        assert queries("test") == {"How?"}, "another split's file"
    shutil.rmtree(tmp_path / "run")
    assert queries() == {"Why?"}
    (tmp_path / "run" / "prompts" / "data.json").unlink()  # a run of an earlier version
    assert queries() == {"Why?"}


def test_stats_before_training_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TutorialError, match="train the policy first"):
        Run(TINY, tmp_path).stats()


def test_command_line_runs_the_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--preset", "tiny", "--output", str(tmp_path / "run")]
    main(["prepare", *output])
    assert "train: 64 queries" in capsys.readouterr().out
    main(["train", *output])
    assert (tmp_path / "run" / "policy" / "config.json").exists()
    main(["compare", *output])
    printed = capsys.readouterr().out
    assert "answer (before):" in printed
    assert "Win rate" in printed
    main(["perplexity", *output])
    assert "last_reply:" in capsys.readouterr().out


def test_the_command_line_sets_the_frozen_layers(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    with pytest.raises(SystemExit, match="num_shared_layers is 2, but the model has 2 layers"):
        main(["train", "--preset", "tiny", "--output", output, "--shared-layers", "2"])
    with pytest.raises(SystemExit, match="RLHF_SHARED_LAYERS is 'some'"):
        main(["train", "--preset", "tiny", "--output", output, "--shared-layers", "some"])


def test_command_line_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_DATA", str(tmp_path / "missing"))
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "--preset", "tiny", "--output", str(tmp_path / "run")])
    assert str(stopped.value).startswith("error: ")
    assert "\n" not in str(stopped.value)


@pytest.mark.slow
@pytest.mark.weights
def test_two_real_steps_on_the_default_preset(tmp_path: Path) -> None:
    """The real policy, judge and prompts: two steps, KL 0 at first, and the policy moves."""
    run = Run(load_preset("smollm2"), tmp_path)
    trainer = run.make_trainer()
    stats = []
    for step in run.train(trainer):
        stats.append(step)
        if len(stats) == 2:
            break
    assert abs(stats[0]["objective/kl"]) < 1e-4
    assert stats[1]["objective/kl"] != 0
    assert all(step["ppo/policy/ratio"].min() > 0 for step in stats)
    assert -5 < stats[0]["ppo/mean_scores"] < 5
    assert stats[0]["tokens/responses_len_mean"] > 8
    head = trainer.model.pretrained_model.get_output_embeddings().weight
    assert not head.requires_grad


def with_temperature(temperature: float) -> Preset:
    system = PromptTemplate(system="Be brief.")
    return replace(TINY, ppo={**TINY.ppo, "temperature": temperature}, template=system)


def test_temperature_and_system_message_are_those_of_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly cold, the policy before training answers as the greedy one does."""
    monkeypatch.setattr("rlhf_tutorial.evaluation.sampling.supports_bf16", lambda device: False)
    run = Run(with_temperature(1e-3), tmp_path)
    assert run.temperature == 1e-3 and Run(TINY, tmp_path / "other").temperature == 1
    queries = run.queries("test")
    assert "Be brief." in run.load_tokenizer().decode(queries["input_ids"][0])
    table = run.compare()
    policy, template = run.load_policy().pretrained_model, run.load_template()
    for i, answer in enumerate(table["response_before"]):
        query = queries["input_ids"][i].unsqueeze(0)
        drawn = policy.generate(
            query,
            attention_mask=torch.ones_like(query),
            do_sample=False,
            max_new_tokens=16,
            pad_token_id=template.tokenizer.pad_token_id,
            eos_token_id=template.eos_token_ids,
        )
        assert template.decode([drawn[0, query.shape[1] :]]) == [answer]
    training = run.results()["training"]
    assert training["temperature"] == 1e-3 and training["system_message"] == "Be brief."


def test_perplexity_of_the_policy_as_it_samples_is_a_kind_of_its_own(
    tmp_path: Path, finished: Run
) -> None:
    run = Run(with_temperature(0.5), tmp_path)
    run.load_policy().save_pretrained(tmp_path / "policy")  # "trained", into what it was
    result = run.perplexity()
    assert json.loads((tmp_path / "perplexity.json").read_text()) == result
    assert result["before"] == result["after"]

    policy, template = run.load_policy().pretrained_model, run.load_template()
    pairs = [last_reply(text) for text in run.preferences("test")["chosen"][:4]]
    expected: dict[str, list[float]] = {"last_reply": [], "last_reply_as_sampled": []}
    for turns, reply in pairs:
        given = template.encode(turns)
        assert "Be brief." in template.tokenizer.decode(given)
        ids = given + template.tokenizer(reply, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = policy(torch.tensor([ids])).logits[0, len(given) - 1 : -1].double()
        for kind, temperature in (("last_reply", 1.0), ("last_reply_as_sampled", 0.5)):
            log_p = (logits / temperature).log_softmax(-1)
            said = log_p.gather(-1, torch.tensor(ids[len(given) :]).unsqueeze(-1))
            expected[kind].append((-said.mean()).exp().item())
    for kind, values in expected.items():
        assert result["before"][kind]["perplexities"] == pytest.approx(values, rel=1e-4)
        averages = run.results()["perplexity"]["before"][kind]
        assert averages["mean_perplexity"] == result["before"][kind]["mean_perplexity"]
    assert expected["last_reply"] != pytest.approx(expected["last_reply_as_sampled"], rel=1e-4)
    # At temperature 1 the policy samples as it is measured anyway.
    for at_1 in (finished.perplexity(), finished.results()["perplexity"]):
        assert at_1["before"].keys() == {"whole_text", "last_reply"} == at_1["after"].keys()


def test_a_checkpoint_of_another_temperature_is_refused(tmp_path: Path) -> None:
    trainer = Run(with_temperature(0.5), tmp_path / "warm").make_trainer()
    trainer.save_checkpoint(tmp_path / "checkpoints")
    other = Run(with_temperature(0.6), tmp_path / "other").make_trainer()
    with pytest.raises(CheckpointError, match="temperature is 0.5 there, 0.6 here"):
        other.resume(tmp_path / "checkpoints")


def test_a_temperature_that_the_run_would_not_be_looked_at_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TutorialError, match="temperature 1.0, and all that looks at it"):
        Run(TINY, tmp_path).make_trainer(temperature=0.5)


def test_a_value_head_may_start_as_a_constant(tmp_path: Path) -> None:
    run = Run(replace(TINY, value_head_start=1.25), tmp_path)
    trainer = run.make_trainer()
    query = trainer.dataloader.dataset["input_ids"][0].unsqueeze(0)
    with trainer.accelerator.autocast():
        values = trainer.policy(query)[2].float()
    assert torch.equal(values, torch.full_like(values, 1.25))
    before = trainer.policy.v_head.weight.clone()
    next(train(trainer, run.load_reward(), run.preset.template, max_new_tokens=8))
    assert not torch.equal(trainer.policy.v_head.weight, before), "it learns from there"


def test_learning_rates_fall_to_0_over_the_run_and_go_on_falling_after_a_checkpoint(
    tmp_path: Path,
) -> None:
    preset = replace(
        TINY, epochs=2, learning_rate_decays=True, value_head_learning_rate=5e-3, max_new_tokens=4
    )
    assert preset.ppo["learning_rate"] == 1e-3
    run = Run(preset, tmp_path / "run")
    trainer, reward = run.make_trainer(), run.load_reward()
    heads = []
    for step, _ in enumerate(train(trainer, reward, preset.template, epochs=2, max_new_tokens=4)):
        heads.append(trainer.optimizer.param_groups[1]["lr"])  # for the step that comes next
        if step == 1:
            trainer.save_checkpoint(tmp_path / "checkpoints")
    rates = [stats["ppo/learning_rate"] for stats in trainer.history]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert heads == pytest.approx([3.75e-3, 2.5e-3, 1.25e-3, 0.0])
    again = Run(preset, tmp_path / "again").make_trainer()
    assert again.resume(tmp_path / "checkpoints") == 2
    rest = train(again, reward, preset.template, epochs=2, max_new_tokens=4)
    assert [stats["ppo/learning_rate"] for stats in rest] == pytest.approx(rates[2:])
    longer = run.make_trainer(steps=8)
    assert longer.lr_scheduler is not None
    longer.optimizer.step()
    longer.lr_scheduler.step()
    assert longer.optimizer.param_groups[0]["lr"] == pytest.approx(8.75e-4)
    assert Run(TINY, tmp_path / "constant").make_trainer().lr_scheduler is None


def test_a_run_with_an_adapter_says_so_and_leaves_an_ordinary_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("RLHF_LORA", "4")
    monkeypatch.setattr("rlhf_tutorial.device.supports_bf16", lambda device: False)
    preset = replace(load_preset("tiny"), prompts=32, comparison_prompts=6, perplexity_texts=4)
    run = Run(preset, tmp_path / "run")
    trainer = run.make_trainer()
    config = trainer.policy.pretrained_model.peft_config["default"]
    assert isinstance(config, LoraConfig) and (config.r, config.lora_alpha) == (4, 8)
    names = {n for n, p in trainer.policy.named_parameters() if p.requires_grad}
    linear = "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    assert {n.split(".")[-4] for n in names if "lora_B" in n} == set(linear)
    steps = run.train(trainer)
    assert next(steps)["objective/kl"] == 0
    trainer.save_checkpoint(tmp_path / "checkpoints")
    same_rate = replace(TINY, ppo={**TINY.ppo, "learning_rate": preset.ppo["learning_rate"]})
    other = Run(same_rate, tmp_path / "other").make_trainer()
    with pytest.raises(CheckpointError, match="num_shared_layers is 0 there, 1 here"):
        other.resume(tmp_path / "checkpoints")
    for _ in steps:
        pass
    assert run.results()["training"]["lora_rank"] == 4
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy")
    assert not (tmp_path / "run" / "policy" / "adapter_config.json").exists()
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        trained = trainer.policy(ids)[0]
        torch.testing.assert_close(policy(ids).logits, trained, rtol=1e-2, atol=1e-2)
        untouched = run.load_policy()(ids)[0]
    assert (trained - untouched).abs().max() > 0.1
    assert run.compare().shape[0] == 6
    with pytest.raises(TutorialError, match="other settings"):
        Run(TINY, tmp_path / "run")
