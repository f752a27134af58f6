"""Labels as they lie on the disk, one JSON object a line, and the pairs that they are about.

`load_labels`, `append_label` and `take_back_label` read and write the file, `untouched_pairs` draws
what is labelled first, and `policy_name` says whose answers they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from ..assets import Hub
from ..errors import DataError, ModelError, reason
from ..presets import PRESETS
from ..run import Run

logger = logging.getLogger(__name__)

CHOICES = ("a", "b", "tie", "skip")
"""What a rater can say of a pair, by the answer's name and not by its side."""

SLACK = 1.0
"""Seconds by which two labels of one rater may overlap: clocks are set now and then."""


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, in an order that says nothing."""

    prompt: str
    a: str
    b: str

    @property
    def key(self) -> tuple[str, ...]:
        """The same for the same two answers, whichever is called a."""
        return (self.prompt, *sorted((self.a, self.b)))


@dataclass(frozen=True)
class Label:
    """One choice."""

    prompt: str
    a: str
    b: str
    left: str
    """ "a" or "b": which one stood on the left."""
    choice: str
    """One of `CHOICES`: by name, not by side."""
    seconds: float
    """From when the pair was shown, or the rater last chose in another session, to the choice."""
    time: str
    """Of the choice: ISO 8601, UTC."""
    rater: str
    """A word that tells raters apart, "you" by default, and never a real name."""
    policy: str
    """What wrote the answers, as `policy_name` has it."""
    repeat: bool = False
    """Whether the pair came again, with its sides swapped."""
    purpose: str = "train"
    """ "train", or "blind test"."""

    @property
    def pair(self) -> Pair:
        """What was chosen from."""
        return Pair(self.prompt, self.a, self.b)


NextPair = Callable[[list[Label], list[Pair]], int]
"""From the labels so far and the pairs that are left, the place of the one to ask about next."""


def labels_path(run: Run) -> Path:
    """Where a run's labels lie."""
    return run.folder / "human" / "labels.jsonl"


# The file ------------------------------------------------------------------------------------


def load_labels(path: str | Path, policy: str | Collection[str] | None = None) -> list[Label]:
    """The labels of a file in their order; none where there is no file. The file stays as it is.

    A line that was cut short, as a full disk leaves one, is left out and logged as a warning.

    Args:
        policy: name or names of the policies whose answers the labels must be about; any by
            default.

    Raises:
        DataError: for a file that cannot be read, a line that is no label, an unknown choice,
            labels of another policy, or two raters under one name (`check_raters`).
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")  # text may hold other ends of lines
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot read {path} ({reason(error)}): check the file") from error
    labels = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            logger.warning("%s: line %d is cut short and left out; the rest is kept", path, number)
            continue
        labels.append(_label(row, f"{path}, line {number}"))
    wanted = {policy} if isinstance(policy, str) else policy
    others = [label.policy for label in labels if wanted is not None and label.policy not in wanted]
    if wanted is not None and others:
        raise DataError(
            f"{path}: {len(others)} of {len(labels)} labels are about answers of {others[0]!r}, "
            f"not of {' or '.join(map(repr, sorted(wanted)))}: give the file of that policy's run"
        )
    check_raters(labels, str(path))
    return labels


def labels_of(run: Run) -> list[Label]:
    """A run's labels: of its untouched policy's answers, and of those that were trained from it.

    Raises:
        DataError: as `load_labels`.
    """
    path, untouched = labels_path(run), policy_name(run)
    trained = untouched.replace(", untouched", ", trained (")
    found = {label.policy for label in load_labels(path) if label.policy.startswith(trained)}
    return load_labels(path, {untouched, *found})


def append_label(path: str | Path, label: Label) -> None:
    """Write one label behind the others; it is on the disk when this returns.

    A last line that was cut short stays, and the label starts a line of its own.

    Raises:
        OSError: where it cannot be written, by a full disk for instance.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fresh = b""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            fresh = b"" if file.read(1) == b"\n" else b"\n"
        file.write(fresh + _line(label))
        file.flush()
        os.fsync(file.fileno())


def take_back_label(path: str | Path, label: Label) -> None:
    """Remove the last line that holds this label; all others stay, byte by byte.

    Raises:
        DataError: if no line holds it. OSError: if the file cannot be replaced.
    """
    path = Path(path)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for last in reversed(range(len(lines))):
        with contextlib.suppress(ValueError):  # a line that was cut short, or no label
            if _label(json.loads(lines[last]), str(path)) == label:
                return replace_file(path, b"".join(lines[:last] + lines[last + 1 :]))
    raise DataError(f"{path} has no such label any more: start the session again")


def check_raters(labels: Iterable[Label], where: str) -> None:
    """Raise DataError where one name seems to stand for two raters.

    That shows in choices made at the same time, and in a pair that was answered twice without being
    a repeat.
    """
    advice = 'give each a name of their own (--rater), and mend "rater" in one of the files'
    answered: set[tuple[str, ...]] = set()
    last: dict[str, datetime] = {}
    for label in sorted(labels, key=lambda label: datetime.fromisoformat(label.time)):
        end = datetime.fromisoformat(label.time)
        start = end - timedelta(seconds=label.seconds)
        key = (label.rater, label.purpose, *label.pair.key)
        twice = key in answered and not label.repeat and label.choice != "skip"
        at_once = label.rater in last and start < last[label.rater] - timedelta(seconds=SLACK)
        if twice or at_once:
            what = "answered a pair twice" if twice else "chose in two places at once"
            raise DataError(
                f"{where}: {label.rater!r} {what} ({label.time}), as two raters under one name do: "
                f"{advice}"
            )
        last[label.rater] = end
        if label.choice != "skip":
            answered.add(key)


def _label(row: Any, where: str) -> Label:
    """The label that a line holds."""
    if not isinstance(row, dict):
        raise DataError(f"{where} is no label: it should be an object, as label writes them")
    values: dict[str, Any] = {}
    for field in fields(Label):
        if field.name not in row and field.name not in ("repeat", "purpose"):
            raise DataError(f"{where} has no {field.name!r}: give a file that label wrote")
        value = row.get(field.name, field.default)
        kinds = {"seconds": (int, float), "repeat": (bool,)}.get(field.name, (str,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise DataError(f"{where}: {field.name!r} is {value!r}: give a file that label wrote")
        values[field.name] = value
    label = Label(**values)
    if label.choice not in CHOICES or label.left not in ("a", "b"):
        name, known = ("left", "a, b") if label.choice in CHOICES else ("choice", "a, b, tie, skip")
        raise DataError(f"{where}: {name} is {values[name]!r}: mend it to one of {known}")
    dated = False
    with contextlib.suppress(ValueError):
        time = datetime.fromisoformat(label.time)
        dated = time.tzinfo is not None and time.year >= 1970
    if not dated or not 0 <= label.seconds < 1e9:
        raise DataError(
            f"{where}: time is {label.time!r} and seconds {label.seconds}: mend them to an ISO "
            "time with its zone and a positive number"
        )
    return label


def _line(label: Label) -> bytes:
    return (json.dumps(asdict(label), ensure_ascii=False) + "\n").encode()


def replace_file(path: Path, content: bytes) -> None:
    """The file's new content, all of it or, where this stops half-way, none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


# The pairs -----------------------------------------------------------------------------------


def policy_name(run: Run, trained: str | Path | None = None) -> str:
    """A policy in words: "smollm2, untouched", or of a folder "smollm2, trained (1a2b3c4d)".

    Args:
        trained: the folder of a policy that was trained in this run; its weights tell it apart.
    """
    known, source = PRESETS.get(run.preset.name), run.preset.policy
    if source is None or (known is not None and known.policy == source):
        name = run.preset.name
    else:
        name = source.repo_id if isinstance(source, Hub) else str(source)
    return f"{name}, untouched" if trained is None else f"{name}, trained ({digest_of(trained)})"


def digest_of(policy: str | Path) -> str:
    """Eight digits that tell a policy's weights, those in its folder, from all others.

    Raises:
        ModelError: where the folder has none.
    """
    folder, digest = Path(policy), hashlib.sha256()
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not files:
        raise ModelError(f"there are no weights in {folder}: give the folder of a trained policy")
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def untouched_pairs(
    run: Run, n: int, seed: int = 0, progress: Callable[..., Iterable[Pair]] | None = None
) -> list[Pair]:
    """Pairs of answers of the untouched policy to training prompts, at the run's temperature.

    They are kept in the run's folder: the same call gives the same pairs again. Two answers of a
    pair are never the same text. A prompt comes again only after all others.

    Args:
        progress: as `tqdm`, to show how the policy answers; by default it is silent.

    Raises:
        DataError: where the policy has one answer only to each prompt.
    """
    path = run.folder / "human" / f"pairs-{n}-{seed}.jsonl"
    if not path.exists():
        drawn: Iterable[Pair] = islice(_drawn_pairs(run, seed), n)
        if progress is not None:
            drawn = progress(drawn, total=n, desc="The policy answers", unit="pair")
        save_pairs(drawn, path)
    return load_pairs(path)


def _drawn_pairs(run: Run, seed: int) -> Iterator[Pair]:
    """One pair after the other; DataError when no others come."""
    queries = run.queries("train")
    order = random.Random(seed).sample(range(len(queries)), len(queries))
    policy = run.load_policy()
    known: set[tuple[str, ...]] = set()
    draw, since = 0, 0  # batches so far, and prompts since the last new pair
    while since <= 2 * len(order) + _BATCH:
        batch = [order[(draw * _BATCH + i) % len(order)] for i in range(_BATCH)]
        rows = queries.select(batch)
        twice = [ids for ids in rows["input_ids"] for _ in range(2)]
        texts = run.answers(policy, twice, seed + 7919 * draw)
        for prompt, a, b in zip(rows["query"], texts[::2], texts[1::2], strict=True):
            pair, since = Pair(prompt, a, b), since + 1
            if a != b and pair.key not in known:
                known.add(pair.key)
                since = 0
                yield pair
        draw += 1
    raise DataError(
        f"the policy has no more than {len(known)} pairs of different answers: ask for fewer, or "
        "raise the preset's temperature"
    )


_BATCH = 16
"""Prompts that are answered at once, twice each."""


def save_pairs(pairs: Iterable[Pair], path: str | Path) -> None:
    """Write pairs as `load_pairs` reads them, one JSON object a line."""
    text = "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    replace_file(Path(path), text.encode())


def load_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a file.

    Raises:
        DataError: where it is damaged.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
        return [Pair(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"cannot read the pairs in {path} ({reason(error)}): delete it, and others are drawn"
        ) from error
