"""Train the second judge, which PPO never sees, measure it, and write its card.

    python scripts/train_second_judge.py --data ../shared/data/hh-rlhf
    python scripts/train_second_judge.py --data Anthropic/hh-rlhf    # from the hub

It is to disagree with the first judge for reasons of its own. So it has another body (the policy's,
SmolLM2), real pairs that the first judge has never seen (the 40% kept from it), none of the
course's pairs, and bad answers of other kinds: what the untouched policy says when it is asked
something else, asked half of it, or run too hot, and good answers spoilt.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from train_reward_adapter import (
    BUNDLED,
    FRONT_MATTER,
    Cut,
    cell,
    course_pairs,
    share,
    split_preferences,
    tidy_adapter,
    token_cutter,
)

from rlhf_tutorial import assets, load_tokenizer
from rlhf_tutorial.device import default_device, supports_bf16
from rlhf_tutorial.evaluation.sampling import sample_answers
from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead
from rlhf_tutorial.reward import RewardModel, train_reward_model
from rlhf_tutorial.reward.training import Pair
from rlhf_tutorial.scores import Reward
from rlhf_tutorial.template import CHAT

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
LAYERS = range(14, 30)  # the lower half stays as it is: no backward pass through it
BATCH_SIZE, LEARNING_RATE, EPOCHS = 32, 4e-4, 1
HUMAN_TIMES = {"first": 3, "last": 1}

# --- Bad answers of its own kinds ----------------------------------------------------------------


class Sampler:
    """The untouched policy, asked questions of the script's making."""

    def __init__(self) -> None:
        folder = assets.resolve(assets.SMOLLM2)
        self.template = CHAT.bind(load_tokenizer(folder))
        self.model = AutoModelForCausalLMWithValueHead.from_pretrained(folder)
        if supports_bf16(default_device()):
            self.model.pretrained_model.to(torch.bfloat16)

    def __call__(self, prompts: Sequence[str], temperature: float, seed: int) -> list[str]:
        """One answer of 32 tokens to each prompt."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding
        answers = sample_answers(
            self.model,
            self.template,
            [torch.tensor(self.template.encode(prompts[i])) for i in order],
            batch_size=64,
            seed=seed,
            max_new_tokens=32,
            temperature=temperature,
        )
        return [answer for _, answer in sorted(zip(order, answers.texts, strict=True))]


def misread(prompt: str, other: str, rng: random.Random) -> str:
    """The prompt with its longest words replaced by another prompt's."""
    words, others = prompt.split(), sorted(other.split(), key=len)[-3:]
    longest = sorted(range(len(words)), key=lambda i: len(words[i]))[-3:]
    for i, word in zip(longest, rng.sample(others, min(len(others), len(longest))), strict=False):
        words[i] = word
    return " ".join(words)


def half_heard(prompt: str, other: str, rng: random.Random) -> str:
    """The first words of the prompt."""
    words = prompt.split()
    return " ".join(words[: rng.randint(1, max(1, min(4, len(words) // 2)))])


def dropped_words(good: str, rng: random.Random) -> str:
    """The good answer with a third of its words missing and some neighbours swapped."""
    words = [w for w in good.split() if rng.random() > 0.35] or good.split()
    for i in range(0, len(words) - 1, 2):
        if rng.random() < 0.3:
            words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def late_start(good: str, rng: random.Random) -> str:
    """The good answer from the middle of a sentence on."""
    words = good.split()
    return " ".join(words[rng.randint(len(words) // 3, max(1, 2 * len(words) // 3)) :])


def sampled_pairs(human: Sequence[Pair], rng: random.Random, seed: int) -> list[Pair]:
    """The policy's own sober answer against what it says when something goes wrong.

    Both sides are the policy's words, so that the judge learns nothing of its style, only whether
    the answer fits the question and holds together.
    """
    sampler = Sampler()
    prompts = [pair["prompt"] for pair in human]
    others = rng.sample(prompts, len(prompts))
    asked = {
        "misread question": [misread(p, o, rng) for p, o in zip(prompts, others, strict=True)],
        "half-heard question": [
            half_heard(p, o, rng) for p, o in zip(prompts, others, strict=True)
        ],
        "too hot": prompts,
    }
    good = sampler(prompts, 0.7, seed)
    pairs = []
    for n, (kind, questions) in enumerate(asked.items(), 1):
        bad = sampler(questions, 1.3 if kind == "too hot" else 0.7, seed + n)
        pairs += [
            {"prompt": p, "chosen": g, "rejected": b, "kind": kind}
            for p, g, b in zip(prompts, good, bad, strict=True)
            if g and b and g != b
        ]
    return pairs


def spoilt_pairs(
    human: Sequence[Pair], human_turns: Sequence[str], rng: random.Random
) -> list[Pair]:
    """The human's choice against itself spoilt, or against a turn that asks and does not answer."""
    kinds: dict[str, Callable[[Pair], str]] = {
        "dropped words": lambda pair: dropped_words(pair["chosen"], rng),
        "late start": lambda pair: late_start(pair["chosen"], rng),
        "a question in place of an answer": lambda pair: rng.choice(human_turns),
    }
    pairs = []
    for pair in human:
        kind = rng.choices(list(kinds), (2, 1, 1))[0]
        bad = kinds[kind](pair)
        if bad and bad != pair["chosen"]:
            pairs.append(pair | {"rejected": bad, "kind": kind})
    return pairs


def questions_of(pairs: Sequence[Pair]) -> list[str]:
    """Prompts that are a single question, to stand where an answer should."""
    return [
        p["prompt"] for p in pairs if p["turn"] == "first" and re.search(r"\?\s*$", p["prompt"])
    ]


def training_pairs(human: Sequence[Pair], seed: int) -> list[Pair]:
    """All pairs, each as often as it is trained on."""
    rng = random.Random(seed)
    return (
        [pair for pair in human for _ in range(HUMAN_TIMES[pair["turn"]])]
        + sampled_pairs(human, rng, seed)
        + spoilt_pairs(human, questions_of(human), rng)
    )


# --- Measuring -----------------------------------------------------------------------------------


def margins(judge: Reward, pairs: Sequence[Pair]) -> list[float]:
    """By how much each pair's chosen answer scores higher."""
    prompts = [pair["prompt"] for pair in pairs]
    answers = [pair[side] for side in ("chosen", "rejected") for pair in pairs]
    scores = judge(prompts + prompts, answers)
    return [c - r for c, r in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)]


def policy_pairs(prompts: Sequence[str]) -> list[Pair]:
    """Two answers of the untouched policy to each prompt, 16 tokens, temperature 1: no better one.

    "chosen" is the first drawn.
    """
    sampler = Sampler()
    queries = [torch.tensor(sampler.template.encode(prompt)) for prompt in prompts]
    drawn = [
        sample_answers(sampler.model, sampler.template, queries, seed=seed, max_new_tokens=16).texts
        for seed in (11, 12)
    ]
    return [
        {"prompt": p, "chosen": a, "rejected": b} for p, a, b in zip(prompts, *drawn, strict=True)
    ]


def measure(
    second: Reward, first: Reward, tests: dict[str, Sequence[Pair]], cut: Cut
) -> dict[str, dict]:
    """Accuracy of both judges, and how often they agree, on whole and on cut answers."""
    figures: dict[str, dict] = {}
    for name, pairs in tests.items():
        for length, seen in (("whole", pairs), ("16 tokens", cut(pairs))):
            ours, theirs = margins(second, seen), margins(first, seen)
            agree = share([(a > 0) == (b > 0) for a, b in zip(ours, theirs, strict=True)])
            agree["correlation"] = round(float(np.corrcoef(ours, theirs)[0, 1]), 3)
            figures.setdefault("agreement", {}).setdefault(length, {})[name] = agree
            if name != "policy":
                for who, values in (("second", ours), ("first", theirs)):
                    right = share([m > 0 for m in values])
                    figures.setdefault(who, {}).setdefault(length, {})[name] = right
    return figures


# --- The card ------------------------------------------------------------------------------------

CARD = (
    FRONT_MATTER
    + """# A second judge of helpfulness

A LoRA adapter with a one-logit head for [{base}](https://huggingface.co/{base}). It scores one
answer to one request in English; higher is more helpful. In this course it only **evaluates**: no
policy is trained on it and no setting is chosen by it, so that a gain under it is not the gain that
was optimised. `scripts/train_second_judge.py` trained it and wrote this page; every figure stands
in `metrics.json`.

```python
from rlhf_tutorial import assets
from rlhf_tutorial.reward import RewardModel

judge = RewardModel.from_pretrained(
    assets.resolve(assets.SMOLLM2), adapter=assets.resolve(assets.Bundled("second_judge"))
)
judge(["How do I boil an egg?"], ["Put it in boiling water for eight minutes."])
```

Request and answer go in as a dialogue of the chat template, without a system message; the score is
read off the answer's last token.

## How independent it is

| | first judge | second judge |
| --- | --- | --- |
| body | all-MiniLM-L6 (encoder, 22M) | SmolLM2-135M-Instruct (decoder), **the policy's own** |
| real pairs | 60% of the dialogues | the other 40%, by the hash of the first human turn |
| course pairs | trained on them | none |
| bad answers | written by rules | the untouched policy's, and spoilt good ones |

**It shares its body with the policy.** What SmolLM2 cannot read, neither the policy nor this judge
can; a judge of another family would be better. It is the strongest body that comes without a model
hub. What it shares with the first judge is the source of the real pairs (hh-rlhf: the same
labellers, the same assistant).

## What it was trained on

| pairs | number | times seen |
| --- | --- | --- |
| real, first replies | {first} | {first_times} |
| real, last replies | {last} | {last_times} |
{kinds}

The first three kinds of bad answers are the untouched policy's, 32 tokens at temperature 0.7, or
1.3 for "too hot", against its own answer to the real question at 0.7. A misread question has its
three longest words replaced by another question's, and of a half-heard one only the first words
were heard. The rest are set against the human's choice.

## Recipe

`trl.RewardTrainer`, as for the first judge: Bradley-Terry loss plus 0.01 times the squared sum of a
pair's scores. LoRA of rank 8 (alpha 16) on every linear layer of the upper sixteen of thirty
layers, head trained in full, AdamW at learning rate {lr}, cosine decay after 10% warm-up, 128
tokens. Both answers are cut to the same 8 to 25 words in 60% of the pairs. {steps} steps of {batch}
pairs, seed {seed}, {minutes} minutes on two CPU cores. One recipe was trained{recipes}.

## How often the better answer scores higher

Held-out pairs, 95% Wilson intervals, computed in float32. hh-rlhf here is this judge's own test
set; the first judge has not seen it either. The course's test pairs were written for the first
judge's data, not for this one.

{table}

## How often the two judges agree

On the same two answers, which one is better. Two judges that ignored each other would agree on
half. "Policy" has two answers of the untouched policy, 16 tokens at temperature 1, to each of the
course's {prompts} validation prompts: there is no right one. The correlation is that of the two
judges' margins.

{agreement}

## Limits

- It is small, and on human preferences between two replies that both answer it is little better
  than chance, as the table says.
- It likes answers that use the request's words, more than the first judge does, and is taken in by
  a request said back (docs/first-edition.md has how much).
- English, short single requests, helpfulness alone.
- A gain under both judges is better evidence than under one. It is still not a person's word.
"""
)

LABELS = {"hh-rlhf": "hh-rlhf, its test set", "course": "course pairs, test", "policy": "policy"}


def write_card(metrics: dict, folder: Path) -> None:
    """Fill the card from `metrics`, so that no number in it is typed by hand."""
    columns = [(who, cut) for who in ("second", "first") for cut in ("whole", "16 tokens")]
    table = [
        "| against | n | second, whole | second, 16 tokens | first, whole | first, 16 tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    agree = [
        "| answers | n | agree, whole | correlation | agree, 16 tokens | correlation |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, label in LABELS.items():
        if name != "policy":
            cells = [cell(metrics[who][cut][name]) for who, cut in columns]
            n = metrics["second"]["whole"][name]["n"]
            table.append(f"| {label} | {n} | {' | '.join(cells)} |")
        figures = [metrics["agreement"][cut][name] for cut in ("whole", "16 tokens")]
        cells = [f"{cell(f)} | {f['correlation']:.2f}" for f in figures]
        agree.append(f"| {label} | {figures[0]['n']} | {' | '.join(cells)} |")
    training = dict(metrics["training"])
    kinds = "\n".join(f"| {kind} | {n} | 1 |" for kind, n in training.pop("kinds").items())
    card = CARD.format(
        base=BASE_NAME, table="\n".join(table), agreement="\n".join(agree), kinds=kinds, **training
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="hh-rlhf: a folder or the hub's id")
    parser.add_argument("--output", type=Path, default=BUNDLED / "second_judge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-only", action="store_true", help="of the adapter in --output")
    args = parser.parse_args()

    human = split_preferences(args.data)
    base = assets.resolve(assets.SMOLLM2)
    path = args.output / "metrics.json"
    if args.measure_only:
        training = json.loads(path.read_text(encoding="utf-8"))["training"]
    else:
        started = time.time()
        pairs = training_pairs(human["judge2-train"], args.seed)
        made = [pair["kind"] for pair in pairs if "kind" in pair]
        print(f"{len(pairs)} pairs, {time.time() - started:.0f} s", flush=True)
        train_reward_model(
            pairs,
            base,
            output=args.output,
            layers=LAYERS,
            learning_rate=LEARNING_RATE,
            batch_size=BATCH_SIZE,
            epochs=EPOCHS,
            seed=args.seed,
            log=lambda step, figures: print(
                f"step {step}: loss {figures['loss']:.3f} accuracy {figures['accuracy']:.3f} "
                f"{time.time() - started:.0f} s",
                flush=True,
            ),
        )
        tidy_adapter(args.output, BASE_NAME)
        first = sum(pair["turn"] == "first" for pair in human["judge2-train"])
        training = {
            "first": first, "first_times": HUMAN_TIMES["first"],
            "last": len(human["judge2-train"]) - first, "last_times": HUMAN_TIMES["last"],
            "kinds": {kind: made.count(kind) for kind in dict.fromkeys(made)},
            "steps": -(-len(pairs) * EPOCHS // BATCH_SIZE), "batch": BATCH_SIZE,
            "lr": LEARNING_RATE, "seed": args.seed,
            "minutes": round((time.time() - started) / 60, 1), "recipes": "",
        }  # fmt: skip
        path.write_text(json.dumps({"training": training}) + "\n", encoding="utf-8")
    # In float32, so that the figures do not depend on the processor.
    second = RewardModel.from_pretrained(base, adapter=args.output, bf16=False)
    first_judge = RewardModel.from_pretrained(
        assets.resolve(assets.MINILM),
        adapter=assets.resolve(assets.Bundled("reward_adapter")),
        bf16=False,
    )
    preferences = BUNDLED / "preferences"
    prompts = [pair["prompt"] for pair in course_pairs(preferences, "validation")]
    tests = {
        "hh-rlhf": human["judge2-test"],
        "course": course_pairs(preferences, "test"),
        "policy": policy_pairs(prompts),
    }
    metrics = measure(second, first_judge, tests, token_cutter())
    metrics["training"] = training | {"prompts": len(prompts)}
    # For a test that the shipped adapter is the one that was measured.
    metrics["margins"] = [round(m, 4) for m in margins(second, tests["course"][:16])]
    path.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    write_card(metrics, args.output)
    print((args.output / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
