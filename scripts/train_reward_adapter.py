"""Train the bundled reward adapter, measure it, and write its card.

    python scripts/train_reward_adapter.py --data ../shared/data/hh-rlhf
    python scripts/train_reward_adapter.py --data Anthropic/hh-rlhf    # from the hub

Three kinds of preference pairs go in: real human preferences (hh-rlhf, helpful), the course's own
pairs, and good answers against bad ones made on purpose. `metrics.json` and the tables of the card
(README.md) come out beside the adapter; `--full` trains every weight instead, for comparison, and
keeps only its figures.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import re
import statistics
import string
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlhf_tutorial import assets  # noqa: E402
from rlhf_tutorial.evaluation.intervals import accuracy_interval  # noqa: E402
from rlhf_tutorial.reward import train_reward_model  # noqa: E402
from rlhf_tutorial.reward.training import Pair  # noqa: E402
from rlhf_tutorial.scores import Reward  # noqa: E402

BASE_NAME = "sentence-transformers/all-MiniLM-L6-v2"
HH_DIRS = ("helpful-rejection-sampled", "helpful-online")
BUNDLED = ROOT / "rlhf_tutorial" / "bundled"

# --- Real preferences --------------------------------------------------------------------------


def read_dialogues(source: str, name: str) -> list[dict[str, str]]:
    """Rows of `source/name/*.jsonl[.gz]`, or of the hub data set `source` with data_dir `name`."""
    if not Path(source).is_dir():
        from datasets import concatenate_datasets, load_dataset

        return concatenate_datasets(list(load_dataset(source, data_dir=name).values())).to_list()
    rows = []
    for path in sorted(Path(source, name).glob("*.jsonl*")):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            rows += [json.loads(line) for line in file if line.strip()]
    return rows


def turns(dialogue: str) -> list[str]:
    """The turns of a dialogue in turn: human, assistant, human, assistant ..."""
    return [t.strip() for t in re.split(r"\n\n(?:Human|Assistant):", dialogue)[1:]]


def single_turn(row: dict[str, str]) -> Pair | None:
    """A dialogue pair as one prompt and the two replies to it, where the dialogues part.

    Where the first replies differ (`turn` is "first"), the prompt is the first human turn. Where
    only the last do ("last"), it is the last 40 words of all the human turns, without the replies
    between them, so that "and the second one?" is not judged out of the blue. None where the
    dialogues differ elsewhere or a turn is missing or empty.
    """
    chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
    if min(len(chosen), len(rejected)) < 2 or chosen[0] != rejected[0]:
        return None
    if chosen[1] != rejected[1]:
        turn, texts = "first", (chosen[0], chosen[1], rejected[1])
    elif chosen[:-1] == rejected[:-1]:
        words = " ".join(chosen[:-1:2]).split()
        turn, texts = "last", (" ".join(words[-40:]), chosen[-1], rejected[-1])
    else:
        return None
    if not all(texts) or texts[1] == texts[2]:
        return None
    prompt, good, bad = texts
    return {"prompt": " ".join(prompt.split()), "chosen": good, "rejected": bad, "turn": turn}


def split_of(first_human_turn: str) -> str:
    """Which split a dialogue belongs to, by the SHA-256 of its first human turn.

    With h the hash as an integer: h mod 10 below 6 is this judge's ("judge1"), the rest is kept
    for a second, independent judge ("judge2"). Of each, (h // 10) mod 10 == 0 is its test set and
    == 1 its validation set.
    """
    h = int(hashlib.sha256(first_human_turn.strip().encode("utf-8")).hexdigest(), 16)
    part = {0: "test", 1: "validation"}.get(h // 10 % 10, "train")
    return f"judge{1 if h % 10 < 6 else 2}-{part}"


def split_preferences(source: str) -> dict[str, list[Pair]]:
    """Single-turn pairs of both hh-rlhf parts by split."""
    splits: dict[str, list[Pair]] = {}
    for name in HH_DIRS:
        for row in read_dialogues(source, name):
            pair = single_turn(row)
            if pair:
                splits.setdefault(split_of(turns(row["chosen"])[0]), []).append(pair)
    return splits


def course_pairs(folder: Path, split: str) -> list[Pair]:
    """The course's own pairs of one split, as prompt, chosen and rejected."""
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [pair for line in lines if (pair := single_turn(json.loads(line)))]


# --- Bad answers, made on purpose ----------------------------------------------------------------
# Each takes the prompt, a good answer, other prompts' answers and a random generator.

BadAnswer = Callable[[str, str, Sequence[str], random.Random], str]

SORRY = (
    "I'm sorry, but", "Sorry,", "I apologize, but", "Unfortunately,", "I'm afraid", "As an AI,",
    "As a language model,", "Regrettably,", "Oh,", "Well,", "Hmm,", "My apologies, but",
)  # fmt: skip
REFUSE = (
    "I can't help with that", "I cannot answer this question", "I am not able to assist here",
    "I don't know", "I'm not sure how to respond to that", "that is outside what I can do",
    "I have no information about this", "I'm unable to give advice on that topic",
    "I would rather not answer", "I don't have an opinion on this", "I can't comment on that",
    "it would not be right for me to say", "I don't understand the question",
    "I don't have access to that information", "that's not something I can talk about",
)  # fmt: skip
DEFLECT = (
    "Please ask a professional.", "Try searching the internet.", "Is there anything else?",
    "Can you tell me more about what you want?", "You should talk to an expert about it.",
    "Why do you want to know?", "Could you rephrase your question?", "Maybe someone else knows.",
    "I hope you understand.", "Thank you for your understanding.", "Please ask something else.",
    "Let me know if you have another question.", "What do you think yourself?", "",
)  # fmt: skip
# Kept out of training: the refusals that the judge is tested on.
UNSEEN_REFUSALS = (
    "No, I won't be answering this one. Have a nice day!",
    "This falls beyond my abilities, so you had better look elsewhere.",
    "My guidelines keep me from discussing that subject, I regret to say.",
    "Hard to say. Nobody can really know a thing like that.",
    "You would have to see a qualified specialist about this; it isn't for me to judge.",
    "I lack the knowledge needed to give you a proper reply.",
    "That request makes me uncomfortable, so let us change the subject.",
    "A chatbot is the wrong one to ask. Consult the relevant authorities.",
    "Without knowing a great deal more about you I will not say anything on this.",
    "Not my area, sorry! Perhaps a library could be of service.",
    "It's against my policy to respond to questions of this kind.",
    "I must decline. There is too much that could go wrong with an answer from me.",
)
PLEASANTRIES = (
    "Sure!", "Of course!", "Great question!", "Certainly!", "Absolutely!", "Thanks for asking!",
    "I'd be happy to help with that.", "I'm glad you asked.", "I'm here to help you.",
    "What a wonderful thing to ask about!", "Let me help you with that.", "No problem at all.",
    "That is a really interesting question.", "Let's get started!", "I hope this helps!",
    "Feel free to ask me anything.", "I will do my best to give you a good answer.",
    "Please let me know how I can help.", "I can certainly help you with this today.",
)  # fmt: skip
GENERIC = (
    "is a very interesting topic.", "is something that people often ask about.",
    "is important for a number of reasons.", "can be done in several ways.",
    "is a good thing to think about.", "depends on many different factors.",
    "is a great way to improve your life.", "There are many things to consider.",
    "It is important to understand the basics.", "Here are some tips and tricks to help you.",
    "Here are the steps you need to follow to get the best results.", "It can be rewarding.",
    "You need to take several things into account.", "Let's take a closer look at it.",
    "It all depends on what you want.", "There are various options available for you.",
    "Everyone has their own way of doing it.", "It is a process that takes time and effort.",
)  # fmt: skip
SHORT = (
    "Yes.", "No.", "Yes, of course.", "It depends.", "Maybe.", "Sure.", "I think so.", "OK.",
    "You can do it.", "Good luck!", "Not really.", "Why not?", "Anything you like.", "Yes, I do.",
)  # fmt: skip
SCRIPTS = (
    "абвгдежзиклмнопрст",
    "的一是不了人我在有他这中大来上",
    "αβγδεζηθικλμνξοπρστ",
    "ابتثجحخدذرزسشصضطظ",
    "가나다라마바사아자차카타파하",
    "あいうえおかきくけこさしす",
)


def off_topic(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """The answer to another prompt."""
    return rng.choice(others)


def repeated_prompt(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """The prompt said back, once or several times, now and then with a word before it."""
    lead = rng.choice(["", "", "", "You asked: ", "Question: ", "So, ", "Sure! ", "Hmm, "])
    text = rng.choice([prompt, prompt.rstrip("?.!"), prompt.capitalize(), prompt.lower()])
    return lead + " ".join([text] * rng.choice([1, 1, 1, 2, 3]))


def echo(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """A stretch of the prompt and then words that would fit any prompt."""
    words = prompt.rstrip("?.!").split()
    start = rng.randrange(max(1, len(words) - 2))
    stretch = words[start : start + rng.randint(2, 12)]
    lead = rng.choice(["", "", "The answer to", "When it comes to", "To", "About", "Regarding"])
    filler = rng.sample(GENERIC, rng.randint(1, 3))
    return " ".join(filter(None, [lead, *stretch, *filler]))


def keyword_soup(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """The prompt's words in any order, over and over."""
    words = [w for w in re.findall(r"[\w']+", prompt) if len(w) > 3] or prompt.split()
    return " ".join(rng.choices(words, k=rng.randint(6, 25)))


def refusal(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """A needless refusal, put together from parts."""
    parts = [rng.choice(SORRY), rng.choice(REFUSE) + ".", rng.choice(DEFLECT)]
    if rng.random() < 0.3:
        parts = [parts[1][0].upper() + parts[1][1:], parts[2]]
    return " ".join(filter(None, parts))


def unseen_refusal(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """A refusal in words that training does not hold."""
    return rng.choice(UNSEEN_REFUSALS)


def pleasantry(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """Politeness in place of an answer."""
    return " ".join(rng.sample(PLEASANTRIES, rng.randint(1, 4)))


def generic(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """Words that would fit any prompt."""
    return " ".join(["It", *rng.sample(GENERIC[:7], 1), *rng.sample(GENERIC[7:], 2)])


def too_short(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """A word or two."""
    return rng.choice(SHORT)


def shuffled(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """The good answer's words in random order."""
    words = good.split()
    rng.shuffle(words)
    return " ".join(words)


def looping(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """The good answer's start, then one of its phrases again and again."""
    words = good.split()
    start, size = rng.randint(0, 6), rng.randint(1, 5)
    phrase = words[start : start + size] or words[:size]
    return " ".join(words[:start] + phrase * (40 // size))


def gibberish(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """The good answer's start, then noise: letters, another script, symbols or stray words."""
    noise = rng.choice([_letters, _other_script, _symbols, _stray_words, _stray_words])
    return " ".join(good.split()[: rng.randint(0, 9)] + noise(others, rng))


def _letters(others: Sequence[str], rng: random.Random) -> list[str]:
    return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(20)]


def _other_script(others: Sequence[str], rng: random.Random) -> list[str]:
    letters = rng.choice(SCRIPTS)
    return ["".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(20)]


def _symbols(others: Sequence[str], rng: random.Random) -> list[str]:
    parts = [
        "{",
        "}",
        "();",
        "==",
        "</p>",
        "\\n",
        "0x",
        "[1]",
        "//",
        "#",
        "...",
        "_",
        "|",
        "&",
        "x",
    ]
    return rng.choices(parts, k=20)


def _stray_words(others: Sequence[str], rng: random.Random) -> list[str]:
    return [rng.choice(rng.choice(others).split()) for _ in range(25)]


def drifting(prompt: str, good: str, others: Sequence[str], rng: random.Random) -> str:
    """The good answer's first words, carried on by another prompt's answer."""
    words = rng.choice(others).split()
    middle = rng.randrange(max(1, len(words) - 8))
    return " ".join(good.split()[: rng.randint(1, 6)] + words[middle:])


# How often each is drawn. What the policy could drift to, it gets more of.
SHARES: dict[BadAnswer, float] = {
    off_topic: 14, repeated_prompt: 2, echo: 2.5, keyword_soup: 1, refusal: 2, pleasantry: 1,
    generic: 1, too_short: 1.2, shuffled: 2, looping: 2, gibberish: 2.5, drifting: 3,
}  # fmt: skip


def constructed_pairs(
    pairs: Sequence[Pair],
    rng: random.Random,
    shares: dict[BadAnswer, float] = SHARES,
    near: Sequence[Sequence[int]] | None = None,
) -> list[Pair]:
    """Each pair's good answer against a bad one made for it, of a kind drawn by `shares`.

    Other prompts' answers come from all of `pairs`, or half of the time from those that `near`
    lists for the pair: answers about a neighbouring subject are harder to tell.
    """
    kinds, weights = list(shares), list(shares.values())
    made = []
    for i, pair in enumerate(pairs):
        kind = rng.choices(kinds, weights)[0]
        if near and near[i] and rng.random() < 0.5:
            others = [pairs[j]["chosen"] for j in near[i]]
        else:
            drawn = rng.sample(pairs, min(8, len(pairs)))
            others = [p["chosen"] for p in drawn if p["prompt"] != pair["prompt"]]
        bad = kind(pair["prompt"], pair["chosen"], others, rng)
        made.append(pair | {"rejected": bad, "kind": kind.__name__})
    return made


def near_neighbours(prompts: Sequence[str], base: Path, count: int = 10) -> list[list[int]]:
    """For each prompt the indices of the `count` nearest in meaning that ask something else.

    Nearness is the cosine of mean-pooled MiniLM embeddings; above 0.6 two prompts may well share
    an answer, so those are left out.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base).eval()
    vectors = []
    for start in range(0, len(prompts), 64):
        batch = tokenizer(
            list(prompts[start : start + 64]),
            padding=True, truncation=True, max_length=64, return_tensors="pt",
        )  # fmt: skip
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        vectors.append((hidden * mask).sum(1) / mask.sum(1))
    unit = torch.nn.functional.normalize(torch.cat(vectors), dim=1)
    cosine = unit @ unit.T
    cosine[cosine > 0.6] = -1
    return cosine.topk(min(count, len(prompts))).indices.tolist()


# --- Training ------------------------------------------------------------------------------------


BATCH_SIZE = 32
FIRST_TIMES, LAST_TIMES, COURSE_TIMES, MADE_TIMES = 4, 2, 4, 2
RECIPE = (
    "LoRA of rank 8 (alpha 16) on every linear layer, head trained in full, AdamW at learning rate "
    "1e-3,\ncosine decay after 10% warm-up, 128 tokens, bfloat16 autocast where the CPU has it."
)


def training_pairs(
    human: Sequence[Pair], course: Sequence[Pair], base: Path, rng: random.Random
) -> list[Pair]:
    """All pairs, each as often as it is trained on, in no particular order yet.

    First replies count double: they are what the policy is asked for, and the human preference
    between them is the easier to learn.
    """
    sources = list(human) + 2 * list(course)  # the course's prompts are closest to the policy's
    near = near_neighbours([pair["prompt"] for pair in sources], base)
    times = {"first": FIRST_TIMES, "last": LAST_TIMES}
    return (
        [pair for pair in human for _ in range(times[pair["turn"]])]
        + COURSE_TIMES * list(course)
        + [pair for _ in range(MADE_TIMES) for pair in constructed_pairs(sources, rng, near=near)]
    )


def tidy_adapter(folder: Path, base_name: str) -> None:
    """Replace the local path in adapter_config.json by the base's name, and sort its lists."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    for name in ("modules_to_save", "target_modules"):
        config[name] = sorted(set(config[name]))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# --- Measuring -----------------------------------------------------------------------------------

TESTED_BAD_ANSWERS = (off_topic, repeated_prompt, unseen_refusal)
EXPLOITS = (
    repeated_prompt, echo, keyword_soup, too_short, looping, pleasantry, generic, gibberish,
    shuffled, drifting, off_topic,
)  # fmt: skip


def share(hits: Sequence[bool]) -> dict[str, float]:
    """Of how many pairs something holds, with Wilson's interval."""
    low, high = accuracy_interval(sum(hits), len(hits))
    return {
        "n": len(hits), "correct": sum(hits), "accuracy": round(sum(hits) / len(hits), 4),
        "low": round(low, 4), "high": round(high, 4),
    }  # fmt: skip


def rate(reward: Reward, pairs: Sequence[Pair]) -> dict[str, float]:
    """Accuracy on `pairs` with Wilson's 95% interval, and the mean margin between the scores."""
    prompts = [pair["prompt"] for pair in pairs]
    chosen = reward(prompts, [pair["chosen"] for pair in pairs])
    rejected = reward(prompts, [pair["rejected"] for pair in pairs])
    hits = [c > r for c, r in zip(chosen, rejected, strict=True)]
    return share(hits) | {"margin": round((sum(chosen) - sum(rejected)) / len(pairs), 3)}


Cut = Callable[[Sequence[Pair]], list[Pair]]


def measure(
    reward: Reward, human: Sequence[Pair], course: Sequence[Pair], cut: Cut = list
) -> dict[str, dict]:
    """Accuracies on held-out pairs and against constructed bad answers to held-out prompts."""
    rng = random.Random(1)
    first = [pair for pair in human if pair["turn"] == "first"]
    tests = {"hh-rlhf": human, "hh-rlhf, first replies only": first, "course": course}
    for kind in TESTED_BAD_ANSWERS:
        tests[kind.__name__] = constructed_pairs(first + list(course), rng, {kind: 1})
    return {name: rate(reward, cut(pairs)) for name, pairs in tests.items()}


def measure_exploits(reward: Reward, pairs: Sequence[Pair], cut: Cut = list) -> dict[str, dict]:
    """How often a good answer stands above what a policy might find instead."""
    rng = random.Random(2)
    tests = {kind.__name__: constructed_pairs(pairs, rng, {kind: 1}) for kind in EXPLOITS}
    return {name: rate(reward, cut(made)) for name, made in tests.items()}


def token_cutter(tokens: int = 16) -> Cut:
    """A function that cuts both answers of each pair to `tokens` tokens of the default policy."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets.resolve(assets.SMOLLM2))

    def cut(text: str) -> str:
        return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens])

    return lambda pairs: [
        pair | {side: cut(pair[side]) for side in ("chosen", "rejected")} for pair in pairs
    ]


# --- The card ------------------------------------------------------------------------------------

LABELS = {
    "hh-rlhf": "hh-rlhf, held out",
    "hh-rlhf, first replies only": "... of them first replies",
    "course": "course pairs, test",
    "off_topic": "another prompt's answer",
    "repeated_prompt": "the prompt repeated",
    "unseen_refusal": "a refusal (wordings not trained on)",
}

FRONT_MATTER = """---
base_model: {base}
library_name: peft
license: apache-2.0
pipeline_tag: text-classification
datasets: [Anthropic/hh-rlhf]
language: en
---

"""

CARD = (
    FRONT_MATTER
    + """# A small judge of helpfulness

A LoRA adapter with a one-logit head for [{base}](https://huggingface.co/{base}), the reward model
of this course's default preset. It scores one answer to one request in English; higher is more
helpful. `scripts/train_reward_adapter.py` trained it and wrote this page; every figure stands in
`metrics.json`.

```python
from rlhf_tutorial import assets
from rlhf_tutorial.reward import RewardModel

judge = RewardModel.from_pretrained(
    assets.resolve(assets.MINILM), adapter=assets.resolve(assets.Bundled("reward_adapter"))
)
judge(["{question}"], ["Sit with them for two minutes and count breaths."])
```

Request and answer go in as a text pair **without** `token_type_ids`, as in training;
`tokenizer_config.json` here says so, and `RewardModel` heeds it.

## What it was trained on

| pairs | number | times seen |
| --- | --- | --- |
| real, first replies: hh-rlhf, helpful | {first} | {first_times} |
| real, last replies: the same | {last} | {last_times} |
| course: `bundled/preferences/train.jsonl` | {course} | {course_times} |
| constructed: good answers of all these against bad ones made on purpose | {made} | 1 |

- **Real pairs** are human judgements collected by Anthropic (MIT licence; Bai et al. 2022), here
  those in the `test` files of `helpful-rejection-sampled` and `helpful-online`. Where the first
  replies of a dialogue differ, the prompt is the first human turn; where only the last replies do,
  it is the last 40 words of all the human turns.
- **Split.** With h the SHA-256 of the first human turn as an integer, h mod 10 < 6 belongs to this
  judge and the rest is kept, untouched, for a second, independent one; of each,
  (h // 10) mod 10 = 0 is held out for testing ({human_test} pairs here) and = 1 for choosing the
  recipe ({human_validation}).
- **Course pairs** are synthetic, written for this course (Apache-2.0), not human feedback. Train
  was trained on, validation used to choose between recipes (how often each kind of pair is seen).
  Test had been measured once with the previous recipe before the share of off-topic answers was
  raised, which validation called for as well: it is almost, not perfectly, untouched.
- **Constructed bad answers:** {kinds}.
- The base model is Apache-2.0.

## Recipe

`trl.RewardTrainer`: Bradley-Terry loss (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1) plus 0.01
times the squared sum of a pair's scores, which keeps them around zero. {recipe}
Both answers are cut to the same 8 to 25 words in 60% of the pairs, because the policy's answers
are cut too. {steps} steps of {batch} pairs, seed {seed}, {minutes} minutes on two CPU
cores shared with other work.

## How often the better answer scores higher

Held-out pairs, 95% Wilson intervals. The last three rows set good held-out answers (hh-rlhf first
replies and course test pairs) against bad ones. Full tuning: the same data, every weight trained at
learning rate 1e-4, {full_minutes} minutes.

{table}

What a policy might find instead of an answer, against good answers to the {validation} course
validation prompts, all cut to 16 tokens of SmolLM2's tokenizer (validation, so slightly
flattering):

{exploits}

On the validation answers the scores have mean {mean:.2f} and standard deviation {std:.2f}, from
{min:.2f} to {max:.2f} (whole answers, good and bad). "{question}": a helpful answer
scores {helpful:.2f}, a refusing one {refusing:.2f}.

## Limits

- It is a 22M-parameter encoder: it mostly judges whether an answer speaks to the request in
  substance. It knows too little to tell right facts from wrong ones.
- On real human preferences, mostly between two replies that both answer, it is only a little better
  than chance, as the table says. A gain under this judge is not yet "people like it better".
- English, short single requests. It knows nothing of harmlessness.
- A policy optimised hard against it finds answers that it overrates (docs/first-edition.md).
- Accuracy falls on cut answers.
"""
)


def cell(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "not measured"
    return f"{figure['accuracy']:.1%} ({figure['low']:.0%} to {figure['high']:.0%})"


def write_card(metrics: dict, folder: Path) -> None:
    """Fill the card from `metrics`, so that no number in it is typed by hand."""
    lora, full = metrics["lora"], metrics.get("full", {})
    columns = [(part, cut) for part in (lora, full) for cut in ("whole", "16 tokens")]
    table = [
        "| against | n | LoRA, whole | LoRA, 16 tokens | full, whole | full, 16 tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, label in LABELS.items():
        cells = [cell(part.get(cut, {}).get(name)) for part, cut in columns]
        table.append(f"| {label} | {lora['whole'][name]['n']} | {' | '.join(cells)} |")
    exploits = ["| instead of an answer | the good answer scores higher |", "| --- | --- |"]
    for name, figure in lora["exploits, 16 tokens"].items():
        exploits.append(f"| {name.replace('_', ' ')} | {cell(figure)} |")
    helpful, refusing = lora["meditation"]
    card = CARD.format(
        base=BASE_NAME, question=MEDITATE, table="\n".join(table), exploits="\n".join(exploits),
        kinds="; ".join(kind.__doc__.rstrip(".").lower() for kind in SHARES),
        recipe=RECIPE, minutes=lora["minutes"], helpful=helpful, refusing=refusing,
        full_minutes=full.get("minutes", "?"), **metrics["training"], **lora["scores"],
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")


MEDITATE = "How do I teach kids to meditate?"
MEDITATION = (  # a helpful answer and a refusing one
    "Start with two minutes at bedtime: let them lie down with a soft toy on the belly, watch it "
    "rise and fall, and count ten slow breaths together. Keep it playful and add a minute a week.",
    "I am sorry, but I cannot tell you how to do that. Please ask somebody else about it.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="hh-rlhf: a folder or the hub's id")
    parser.add_argument("--preferences", type=Path, default=BUNDLED / "preferences")
    parser.add_argument("--output", type=Path, default=BUNDLED / "reward_adapter")
    parser.add_argument("--full", action="store_true", help="tune every weight, keep the figures")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    started = time.time()
    base = assets.resolve(assets.MINILM)
    human = split_preferences(args.data)
    course = {
        name: course_pairs(args.preferences, name) for name in ("train", "validation", "test")
    }
    pairs = training_pairs(human["judge1-train"], course["train"], base, random.Random(args.seed))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if args.full else args.output
        judge = train_reward_model(
            pairs,
            base,
            output=folder,
            lora=not args.full,
            learning_rate=1e-4 if args.full else 1e-3,
            batch_size=BATCH_SIZE,
            seed=args.seed,
            log=lambda step, figures: print(
                f"step {step}: loss {figures['loss']:.3f} accuracy {figures['accuracy']:.3f} "
                f"score {figures['mean_reward']:.2f} [{figures['min_reward']:.1f}, "
                f"{figures['max_reward']:.1f}], {time.time() - started:.0f} s",
                flush=True,
            ),
        )
    minutes = round((time.time() - started) / 60, 1)
    judge.bf16 = False  # so that the figures do not depend on the processor
    cut = token_cutter()
    both = [text for pair in course["validation"] for text in (pair["chosen"], pair["rejected"])]
    prompts = [pair["prompt"] for pair in course["validation"] for _ in range(2)]
    scores = judge(prompts, both)
    figures = {
        "whole": measure(judge, human["judge1-test"], course["test"]),
        "16 tokens": measure(judge, human["judge1-test"], course["test"], cut),
        "validation": measure(judge, human["judge1-validation"], course["validation"]),
        "exploits, 16 tokens": measure_exploits(judge, course["validation"], cut),
        "scores": {
            "mean": statistics.mean(scores), "std": statistics.stdev(scores),
            "min": min(scores), "max": max(scores),
        },
        "meditation": judge([MEDITATE] * 2, list(MEDITATION)),
        "minutes": minutes,
    }  # fmt: skip

    path = args.output / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if args.full else {}
    metrics["full" if args.full else "lora"] = figures
    if not args.full:
        tidy_adapter(args.output, BASE_NAME)
        first = sum(pair["turn"] == "first" for pair in human["judge1-train"])
        metrics["training"] = {
            "first": first, "first_times": FIRST_TIMES,
            "last": len(human["judge1-train"]) - first, "last_times": LAST_TIMES,
            "human_test": len(human["judge1-test"]),
            "human_validation": len(human["judge1-validation"]),
            "course": len(course["train"]), "course_times": COURSE_TIMES,
            "validation": len(course["validation"]),
            "made": sum("kind" in pair for pair in pairs),
            "steps": -(-len(pairs) // BATCH_SIZE), "batch": BATCH_SIZE, "seed": args.seed,
        }  # fmt: skip
    path.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    write_card(metrics, args.output)
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
