"""Notebook 01: from dialogues to prompts, and to the text that a policy reads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from ..dialogues import first_prompt, parse_dialogue
from .checking import Exercise

DIALOGUES = [
    "\n\nHuman: How do I boil an egg?\n\nAssistant: Seven minutes."
    "\n\nHuman: And two?\n\nAssistant: The same.",
    "\n\nHuman: How do I\nboil two eggs?\n\nAssistant: Together.",
    "\n\nHuman: Why is the sky blue?",
    "\n\nHuman: \n\nAssistant: What would you like to know?",
    "\n\nHuman: Write a poem about eggs, please!\n\nAssistant: Oval.",
    "\n\nHuman: Write a poem about tea, please!\n\nAssistant: Warm.",
    "\n\nHuman: Write a very long poem about tea, please!\n\nAssistant: Warm, and long.",
]
LIMIT = len("Write a poem about eggs, please!")


def _kept(
    dialogues: list[str],
    max_chars: int,
    turn: int = 0,
    one_line: bool = True,
    replied: bool = True,
    empty: bool = False,
    too_long: Callable[[int, int], bool] = lambda length, most: length >= most,
) -> list[str]:
    kept = []
    for text in dialogues:
        turns = parse_dialogue(text)
        prompt = [said for role, said in turns if role == "Human"][turn]
        prompt = prompt.replace("\n", " ") if one_line else prompt
        if (replied and turns[-1][0] == "Human") or too_long(len(prompt), max_chars):
            continue
        if prompt or empty:
            kept.append(prompt)
    return kept


def _words(prompt: str) -> str:
    return " ".join(re.findall(r"\w+", prompt.lower()))


def _leaked(train: list[str], test: list[str]) -> list[str]:
    seen = set(map(_words, train))
    return [prompt for prompt in test if _words(prompt) in seen]


def _chat(system: str, request: str) -> str:
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        f"<|im_start|>user\n{request}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


EXERCISES: dict[str, Exercise] = {
    "kept_prompts": Exercise(
        lambda dialogues, max_chars: [
            prompt for prompt in map(first_prompt, dialogues) if prompt and len(prompt) < max_chars
        ],
        [(DIALOGUES, LIMIT)],
        {
            "A prompt of exactly `max_chars` characters is too long: shorter is asked for.": (
                lambda d, n: _kept(d, n, too_long=lambda length, most: length > most)
            ),
            "Nothing is dropped for its length.": (
                lambda d, n: _kept(d, n, too_long=lambda length, most: False)
            ),
            "You take the last human turn. The first one needs nothing that was said before.": (
                lambda d, n: _kept(d, n, turn=-1)
            ),
            "A line break is left in a prompt: make it a space.": (
                lambda d, n: _kept(d, n, one_line=False)
            ),
            "You keep a dialogue that nobody answered.": lambda d, n: _kept(d, n, replied=False),
            "You keep an empty prompt.": lambda d, n: _kept(d, n, empty=True),
        },
    ),
    "leaked": Exercise(
        _leaked,
        [
            (
                ["How do I boil an egg?", "why is the sky blue", "plant Tulips", "Brown butter"],
                [
                    "Why is the sky blue?",
                    "Name a tulip",
                    "How do I boil an egg",
                    "Plant tulips",
                    "Brown butter",
                ],
            ),
            (["egg"], ["eggs"]),
        ],
        {
            "You compare letter by letter: 'Why is the sky blue?' is in train, without its capital "
            "and its question mark.": lambda train, test: [p for p in test if p in train],
            "You forget the punctuation: a question mark makes no other question.": (
                lambda train, test: [p for p in test if p.lower() in [q.lower() for q in train]]
            ),
            "You forget the capitals.": lambda train, test: [
                p for p in test if p.rstrip("?") in [q.rstrip("?") for q in train]
            ],
            "These are the train prompts. Give those of the test, which would have to go.": (
                lambda train, test: _leaked(test, train)
            ),
            "Give the prompts as they stand in the test, not as you compare them.": (
                lambda train, test: [_words(p) for p in _leaked(train, test)]
            ),
            "These are the prompts that are all right: the others are asked for.": (
                lambda train, test: [p for p in test if p not in _leaked(train, test)]
            ),
        },
    ),
    "chat_text": Exercise(
        _chat,
        [("Be brief.", "How do I boil an egg?"), ("Answer in verse.", "Why?")],
        {
            "The assistant's turn is not opened: the policy would go on in your voice.": (
                lambda s, r: _chat(s, r).removesuffix("<|im_start|>assistant\n")
            ),
            "You close the assistant's turn: nothing is left to be said.": (
                lambda s, r: _chat(s, r) + "<|im_end|>"
            ),
            "The line break after `assistant` is missing: it's a token too, and the policy has "
            "always seen it there.": lambda s, r: _chat(s, r).removesuffix("\n"),
            "The turns are not closed: <|im_end|> is missing.": (
                lambda s, r: _chat(s, r).replace("<|im_end|>", "")
            ),
            "The line breaks after <|im_end|> are missing.": (
                lambda s, r: _chat(s, r).replace("<|im_end|>\n", "<|im_end|>")
            ),
            "The line breaks after the roles are missing.": (
                lambda s, r: re.sub(r"(system|user|assistant)\n", r"\1", _chat(s, r))
            ),
            "The system message is missing.": lambda s, r: _chat(s, r).split("\n", 2)[2],
            "The system message and the request are swapped.": lambda s, r: _chat(r, s),
        },
    ),
    "training_steps": Exercise(
        lambda prompts, batch_size, epochs: epochs * (prompts // batch_size),
        [(640, 16, 1), (100, 16, 2), (31, 8, 3)],
        {
            "You divide at the end. A batch doesn't reach from one epoch into the next.": (
                lambda n, b, e: e * n // b
            ),
            "You round up: a batch that isn't full is left out.": lambda n, b, e: (
                e * math.ceil(n / b)
            ),
            "You don't round: there is no half of a step.": lambda n, b, e: e * n / b,
            "The epochs are forgotten.": lambda n, b, e: n // b,
            "That is the number of answers. A step takes a whole batch of them.": (
                lambda n, b, e: e * (n // b) * b
            ),
        },
    ),
}
