"""How an instruction is put to a policy, and how its answer is read back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .errors import DataError, reason

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


Turn = tuple[str, str]  # ("Human" or "Assistant", text)


@dataclass(frozen=True)
class PromptTemplate:
    """How an instruction is put to a policy, and how its answer is read back.

    Attributes:
        text: with "{instruction}" in it; None for the tokenizer's own chat template.
        end: the string that ends an answer, where that is not the tokenizer's EOS.
        system: the system message of the chat template; None for no such message, not even the
            template's default one.
    """

    text: str | None = None
    end: str | None = None
    system: str | None = None

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
        roles = {"Human": "user", "Assistant": "assistant"}
        messages = [{"role": roles[role], "content": turn} for role, turn in turns]
        if self.template.system is not None:
            return _render_with_system(self.tokenizer, messages, self.template.system)
        return _render_without_system(self.tokenizer, messages)

    def encode(self, turns: list[Turn] | str) -> list[int]:
        """Token ids of the rendered dialogue, or of a single instruction."""
        turns = [("Human", turns)] if isinstance(turns, str) else turns
        return self.tokenizer(self.render(turns), add_special_tokens=False)["input_ids"]

    @cached_property
    def eos_token_ids(self) -> list[int]:
        """The tokens that end an answer: EOS, and `end` where that is a single token."""
        tokenizer, end = self.tokenizer, self.template.end
        ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        if end is not None:
            pieces = tokenizer.encode(end, add_special_tokens=False)
            if len(pieces) == 1:
                ids.insert(0, pieces[0])
        return list(dict.fromkeys(ids))

    def decode(self, responses: list[Tensor]) -> list[str]:
        """The answers as text, without special tokens and without anything from `end` on."""
        end = self.template.end
        texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
        return [(text if end is None else text.split(end)[0]).strip() for text in texts]


CHAT = PromptTemplate()
BRIEF = PromptTemplate(system="Answer briefly, in one sentence of at most 20 words.")
DLITE = PromptTemplate("\n### Instruction:\n{instruction}\n### Response:\n", end="### End")


def _render_with_system(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], system: str
) -> str:
    """The chat template's text of a system message and the messages after it."""
    name = tokenizer.name_or_path
    try:
        text = _apply(tokenizer, [{"role": "system", "content": system}, *messages], prompt=True)
    except DataError:
        raise
    except Exception as error:  # templates refuse a system message with errors of their own
        raise DataError(
            f"the chat template of {name!r} takes no system message ({reason(error)}): give the "
            "preset none"
        ) from error
    if system.strip() not in text:
        raise DataError(f"the chat template of {name!r} drops the system message: give none")
    return text


def _render_without_system(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> str:
    """The chat template's text of the messages alone.

    Many templates put a default system message first when none is given. Rendering with one of our
    own, and taking its text off the front, leaves the messages. That is so if another one would
    have left the same; some templates write it into the first message instead.
    """

    def without(system_text: str) -> str | None:
        system = [{"role": "system", "content": system_text}]
        prefix = _apply(tokenizer, system, prompt=False)
        text = _apply(tokenizer, system + messages, prompt=True)
        if not text.startswith(prefix):
            return None
        rest, bos = text[len(prefix) :], tokenizer.bos_token
        # The token that begins every text is no part of the system message.
        return bos + rest if bos and prefix.startswith(bos) and not rest.startswith(bos) else rest

    try:
        if (text := without("-")) is not None and text == without("+"):
            return text
    except DataError:
        raise
    except Exception:  # templates refuse a system message with errors of their own
        pass
    try:
        return _apply(tokenizer, messages, prompt=True)
    except Exception as error:
        raise DataError(
            f"the chat template of {tokenizer.name_or_path!r} fails ({reason(error)}): give the "
            "preset a template text"
        ) from error


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], prompt: bool) -> str:
    if tokenizer.chat_template is None:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template: give the preset a "
            "template text"
        )
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return str(text)
