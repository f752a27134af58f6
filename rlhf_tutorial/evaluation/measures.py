"""What can be counted in answers without a judge: length, variety, echoes, sentence endings.

They say nothing of help. They are here because a policy that games a judge mostly shows in one of
them: it repeats the prompt, says one thing to everybody, or rambles.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ..errors import DataError

_END = re.compile(r"[.!?…][\"'”’)\]]*$")
_SENTENCE = re.compile(r".*?(?<!\d)[.!?](?=\s)", re.DOTALL)
_ASKS_YES_OR_NO = re.compile(
    r"(?:.*[.,] )?(?:is|are|am|was|were|do|does|did|can|could|should|would|will|has|have|may) "
)
_YES_OR_NO = {"yes", "no", "yeah", "nope", "not", "maybe"}


def words(text: str) -> list[str]:
    """The text's words, in lower case and without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def echoed(query: str, response: str) -> float:
    """Share of the query's different words that come back in the response; 0 without a word."""
    asked = set(words(query))
    return len(asked & set(words(response))) / len(asked) if asked else 0.0


def ends_in_sentence(response: str) -> bool:
    """Whether the response ends with a sentence's full stop, question or exclamation mark."""
    return bool(_END.search(response.rstrip()))


def first_sentence(response: str) -> str:
    """The response up to the end of its first sentence; all of it where that is its end.

    A sentence ends with a full stop, question or exclamation mark before white space; the full stop
    of a numbered list, "1. Take", ends none.
    """
    match = _SENTENCE.match(response)
    return match[0] if match else response


def distinct(responses: Sequence[str], n: int = 2) -> float:
    """Distinct-n (Li et al. 2016, arXiv 1510.03055): different n-grams over all n-grams.

    All responses are taken together, so that a phrase which many of them share counts once. It
    falls with the number of responses: compare only sets of the same size. 0 without an n-gram.
    """
    grams = []
    for response in responses:
        tokens = words(response)
        grams += [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def commonest_opening(responses: Sequence[str], n: int = 2) -> tuple[str, float]:
    """The first n words that most responses begin with, and the share of them that do.

    Raises:
        DataError: for no responses.
    """
    if not responses:
        raise DataError("there are no responses to look for an opening in: give at least one")
    openings = Counter(" ".join(words(response)[:n]) for response in responses)
    opening, count = openings.most_common(1)[0]
    return opening, count / len(responses)


def bare_yes_or_no(query: str, response: str) -> bool:
    """Whether the response is a yes or no of at most three words to a query that asks for none."""
    said = words(response)
    asks = bool(_ASKS_YES_OR_NO.match(query.lower().strip()))
    return not asks and 0 < len(said) <= 3 and said[0] in _YES_OR_NO


def text_measures(queries: Sequence[str], responses: Sequence[str]) -> dict[str, float]:
    """The four measures of a set of responses.

    Returns:
        "words": mean number of words. "distinct-2": see `distinct`. "echoed": mean share of the
        query's words in the response. "ended": share of responses that end in a sentence.

    Raises:
        DataError: for no responses, or lists of unequal length.
    """
    if not responses or len(queries) != len(responses):
        raise DataError(
            f"{len(queries)} queries and {len(responses)} responses: give one response per query, "
            "and at least one"
        )
    pairs = list(zip(queries, responses, strict=True))
    return {
        "words": sum(len(words(r)) for r in responses) / len(responses),
        "distinct-2": distinct(responses),
        "echoed": sum(echoed(q, r) for q, r in pairs) / len(pairs),
        "ended": sum(map(ends_in_sentence, responses)) / len(responses),
    }
