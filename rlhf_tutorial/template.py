"""How an instruction is put to a policy, and how its answer is read back."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING

from .dialogues import Turn, query_turns
from .errors import DataError, reason

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, repr=False)
class PromptTemplate:
    """How an instruction is put to a policy, and how its answer is read back.

    Attributes:
        text: with "{instruction}" in it; None for the tokenizer's own chat template.
        end: the string that ends an answer, where that is not the tokenizer's EOS.
        system: the system message of the chat template; None for no such message, not even the
            template's default one. A dialogue that has one of its own keeps it.
        thinking: let a model that can think before it answers do so (`enable_thinking` of its chat
            template). Off, since the first tokens of a short answer would be all thought.
    """

    text: str | None = None
    end: str | None = None
    system: str | None = None
    thinking: bool = False

    def __post_init__(self) -> None:
        if self.text is not None and self.system is not None:
            raise DataError("a system message needs a chat template: write it into the text")
        try:
            has_field = self.text is None or "?" in self.text.format(instruction="?")
        except (KeyError, IndexError, ValueError, AttributeError):
            has_field = False
        if not has_field or (self.text is not None and "{instruction}" not in self.text):
            raise DataError(
                f"the template {self.text!r} must hold {{instruction}} and no other field: write "
                "other braces twice"
            )

    def __repr__(self) -> str:
        """As made, with `thinking` only where it is on: a run's folder knows its preset by this."""
        fields = [f"{name}={getattr(self, name)!r}" for name in ("text", "end", "system")]
        fields += ["thinking=True"] if self.thinking else []
        return f"{type(self).__name__}({', '.join(fields)})"

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> BoundTemplate:
        """The template as it works with this tokenizer."""
        return BoundTemplate(self, tokenizer)


@dataclass(frozen=True)
class BoundTemplate:
    """A template and the tokenizer that it is used with: dialogues to tokens, tokens to answers."""

    template: PromptTemplate
    tokenizer: PreTrainedTokenizerBase

    def render(self, turns: list[Turn]) -> str:
        """The text of a dialogue that ends with a human turn, ready for the answer.

        A template of text knows instruction and answer only: earlier turns become part of the
        instruction, one per line.
        """
        if self.template.text is not None:
            return self.template.text.format(instruction="\n".join(turn for _, turn in turns))
        messages = [{"role": _ROLES[role], "content": turn} for role, turn in turns]
        if messages and messages[0]["role"] == "system":
            return self._with_system(messages[1:], messages[0]["content"])
        if self.template.system is not None:
            return self._with_system(messages, self.template.system)
        return self._without_system(messages)

    def encode(self, turns: list[Turn] | str) -> list[int]:
        """Token ids of the rendered dialogue; of a text see `dialogues.query_turns`.

        A template of text begins with what the tokenizer puts before every text, such as BOS.
        """
        turns = query_turns(turns) if isinstance(turns, str) else turns
        ids = self.tokenizer(self.render(turns), add_special_tokens=False)["input_ids"]
        start = [] if self.template.text is None else self._start_ids
        return list(ids) if ids[: len(start)] == start else [*start, *ids]

    def plain(self, text: str) -> str:
        """The text with a space inside each special token that it spells out: read as text, too.

        `decode` leaves special tokens out, but a policy can spell one in ordinary tokens, letter by
        letter, and so can whoever writes a prompt.
        """
        return self._spelled_out.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    @cached_property
    def _spelled_out(self) -> re.Pattern[str]:
        """Finds the text of any special token that has an inside, so of two characters at least."""
        tokens = self.tokenizer.convert_ids_to_tokens(sorted(_special_ids(self.tokenizer)))
        longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def eos_token_ids(self) -> list[int]:
        """The tokens that end an answer.

        In this order: `end` where that is a single token, the special tokens that the chat template
        puts after an answer, and EOS. The first is the one that an answer is to end with.
        """
        tokenizer, end = self.tokenizer, self.template.end
        ids: list[int] = []
        if end is not None:
            pieces = tokenizer.encode(end, add_special_tokens=False)
            ids += pieces if len(pieces) == 1 else []
        ids += self._turn_end_ids
        ids += [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return list(dict.fromkeys(ids))

    def decode(self, responses: list[Tensor]) -> list[str]:
        """The answers as text: up to the first end token, or `end`, and without special tokens."""
        end = self.template.end
        told = [_before(response.tolist(), self.eos_token_ids) for response in responses]
        texts = self.tokenizer.batch_decode(told, skip_special_tokens=True)
        return [(text.split(end)[0] if end else text).strip() for text in texts]

    @cached_property
    def _start_ids(self) -> list[int]:
        """What the tokenizer puts before any text of its own accord."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        places = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return list(whole[: next(places, 0)])

    @cached_property
    def _turn_end_ids(self) -> list[int]:
        """The special tokens that the chat template has after an answer that nothing follows."""
        if self.template.text is not None or self.tokenizer.chat_template is None:
            return []
        said = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            _, answer, tail = self._apply(said, prompt=False).rpartition("answer")
        except Exception:  # a template may refuse answers; EOS is left
            return []
        ids = self.tokenizer(tail if answer else "", add_special_tokens=False)["input_ids"]
        return [i for i in ids if i in _special_ids(self.tokenizer)]

    # The chat template ---------------------------------------------------------------------------

    def _apply(self, messages: list[dict[str, str]], prompt: bool) -> str:
        """The chat template's text of the messages, with the opening of an answer if `prompt`.

        A template that knows no thinking passes over what it is told about it.
        """
        if self.tokenizer.chat_template is None:
            raise DataError(
                f"the tokenizer {self.tokenizer.name_or_path!r} has no chat template: give the "
                "preset a template text"
            )
        thinking = self.template.thinking
        text = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=prompt,
            enable_thinking=thinking,  # Qwen3, SmolLM3, GLM-4.5
            thinking=thinking,  # Granite, DeepSeek-V3.1
        )
        return str(text)

    def _with_system(self, messages: list[dict[str, str]], system: str) -> str:
        """The chat template's text of a system message and the messages after it."""
        name = self.tokenizer.name_or_path
        try:
            text = self._apply([_system(system), *messages], prompt=True)
        except DataError:
            raise
        except Exception as error:  # templates refuse a system message with errors of their own
            raise DataError(
                f"the chat template of {name!r} takes no system message ({reason(error)}): give "
                "the preset none"
            ) from error
        if system.strip() not in text:
            raise DataError(f"the chat template of {name!r} drops the system message: give none")
        return text

    def _without_system(self, messages: list[dict[str, str]]) -> str:
        """The chat template's text of the messages, without its default system message."""
        if self._default_system is not None:
            front, start = self._default_system
            text = self._apply([_system(_STAND_INS[0]), *messages], prompt=True)
            if text.startswith(front):
                rest = text.removeprefix(front)
                return rest if rest.startswith(start) else start + rest
        try:
            return self._apply(messages, prompt=True)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path!r} fails ({reason(error)}): "
                "give the preset a template text"
            ) from error

    @cached_property
    def _default_system(self) -> tuple[str, str] | None:
        """How to leave out the system message that many templates put first when none is given.

        Rendering with one of our own, and taking its text off the front, leaves the messages. That
        is so if another one would have left the same; some templates write it into the first turn.

        Returns:
            The front with the first of `_STAND_INS`, and what of it stands before every text and
            stays (BOS, "[gMASK]<sop>"). None where the messages rendered alone are right as they
            are: the template takes no system message, has no default, or says the same in every
            system turn, asked for or not (Llama 3.2's date).
        """
        question = [{"role": "user", "content": "question"}]
        try:
            fronts, rests = [], []
            for text in _STAND_INS:
                fronts.append(self._apply([_system(text)], prompt=False))
                whole = self._apply([_system(text), *question], prompt=True)
                rests.append(whole.removeprefix(fronts[-1]) if whole.startswith(fronts[-1]) else "")
            if not rests[0] or rests[0] != rests[1]:
                return None
        except DataError:
            raise
        except Exception:  # templates refuse a system message with errors of their own
            return None
        with contextlib.suppress(Exception):  # or refuse messages without one
            alone = self._apply(question, prompt=True)
            if alone.endswith(rests[0]):
                default = alone.removesuffix(rests[0])
                same = fronts[0].replace(_STAND_INS[0], "", 1)
                if default == same or fronts[0].startswith(default):
                    return None
        return fronts[0], self._start_of(fronts[0])

    def _start_of(self, front: str) -> str:
        """What stands before the system turn: the rest of `front` when the turn is taken off it.

        A second such turn shows how long it is; a template that takes no second one is believed to
        put nothing but BOS before it.
        """
        with contextlib.suppress(Exception):
            twice = self._apply([_system(_STAND_INS[0])] * 2, prompt=False)
            turn = twice.removeprefix(front)
            if twice != turn and turn and front.endswith(turn):
                return front.removesuffix(turn)
        bos = self.tokenizer.bos_token
        return bos if bos and front.startswith(bos) else ""


_ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}
_STAND_INS = ("Be kind.", "Be brief.")


def _system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens, those without a name among them."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}


def _before(ids: list[int], ends: list[int]) -> list[int]:
    """What comes before the first of `ends`; all where there is none."""
    return list(takewhile(lambda i: i not in ends, ids))


CHAT = PromptTemplate()
BRIEF = PromptTemplate(system="Answer briefly, in one sentence of at most 20 words.")
DLITE = PromptTemplate("\n### Instruction:\n{instruction}\n### Response:\n", end="### End")
