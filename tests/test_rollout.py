"""Sampling, where responses begin and end, and the layout of a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_tutorial.errors import ModelError
from rlhf_tutorial.ppo.rollout import collate, cut_at_eos, generate_responses, pad

PAD, EOS, OTHER_EOS = 0, 1, 9


def ids(*tokens: int) -> Tensor:
    return torch.tensor(tokens)


# Padding and cutting -------------------------------------------------------------------------


def test_padding_on_either_side():
    rows = [ids(5, 6, 7), ids(8)]
    left, left_mask = pad(rows, PAD, "left")
    assert left.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert left_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    right, right_mask = pad(rows, PAD, "right")
    assert right.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert right_mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_mask_knows_padding_from_a_token_with_the_same_number():
    assert pad([ids(PAD, PAD, 5), ids(5)], PAD, "left")[1].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (ids(5, EOS, PAD, PAD), [5, EOS]),
        (ids(EOS, PAD), [EOS]),
        (ids(5, 6), [5, 6]),
        (ids(5, OTHER_EOS, 6, EOS), [5, OTHER_EOS]),
        (ids(EOS, EOS), [EOS]),
    ],
)
def test_a_response_ends_with_its_first_eos(response, expected):
    assert cut_at_eos(response, [EOS, OTHER_EOS]).tolist() == expected


def test_without_an_eos_nothing_is_cut():
    assert cut_at_eos(ids(5, EOS, 6), []).tolist() == [5, EOS, 6]


# Responses from a model that says what it is told --------------------------------------------


class Parrot:
    """Answers each query by its last token's entry in a book, padded as `generate` pads."""

    def __init__(self, book: dict[int, list[int]]) -> None:
        self.book, self.calls = book, []

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **settings) -> Tensor:
        self.calls.append({"input_ids": input_ids, "attention_mask": attention_mask, **settings})
        answers = [torch.tensor(self.book[row[-1].item()]) for row in input_ids]
        return torch.cat([input_ids, pad(answers, settings["pad_token_id"], "right")[0]], dim=1)


BOOK = {
    10: [5, 6, EOS],  # early EOS
    11: [EOS],  # EOS first
    12: [5, 6, 7, 8, 5],  # no EOS
    13: [5, OTHER_EOS],
}


def test_responses_hold_no_prompt_token_however_early_they_end():
    # EOS stands in the prompts, too, and one prompt consists of padding's token.
    queries = [ids(2, EOS, 3, 10), ids(11), ids(EOS, 12), ids(PAD, PAD, 13)]
    responses = generate_responses(
        Parrot(BOOK), queries, pad_token_id=PAD, eos_token_id=[EOS, OTHER_EOS]
    )
    assert [r.tolist() for r in responses] == [BOOK[10], BOOK[11], BOOK[12], BOOK[13]]


def test_a_pad_token_that_is_eos_ends_the_response_once():
    parrot = Parrot(BOOK)
    responses = generate_responses(parrot, [ids(10), ids(12)], pad_token_id=EOS, eos_token_id=EOS)
    assert [r.tolist() for r in responses] == [[5, 6, EOS], [5, 6, 7, 8, 5]]


def test_batches_keep_the_order_and_pad_only_to_their_own_longest():
    queries = [ids(2, 2, 10), ids(11), ids(12), ids(3, 13), ids(11)]
    parrot, drawn = Parrot(BOOK), iter([5, 3, 4])
    responses = generate_responses(
        parrot,
        queries,
        pad_token_id=PAD,
        eos_token_id=[EOS, OTHER_EOS],
        batch_size=2,
        length_sampler=lambda: next(drawn),
    )
    assert [r.tolist() for r in responses] == [BOOK[q[-1].item()] for q in queries]
    assert [tuple(c["input_ids"].shape) for c in parrot.calls] == [(2, 3), (2, 2), (1, 1)]
    assert [c["max_new_tokens"] for c in parrot.calls] == [5, 3, 4]
    assert parrot.calls[0]["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


# Responses from real models ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_batch_answers_as_each_query_would_alone(kind, make_policy, samples):
    policy, queries = make_policy(kind), samples[0]
    settings = {"pad_token_id": PAD, "eos_token_id": EOS, "max_new_tokens": 8, "do_sample": False}
    together = generate_responses(policy, queries, **settings)
    for query, response in zip(queries, together, strict=True):
        alone = policy.pretrained_model.generate(
            query.unsqueeze(0), attention_mask=torch.ones(1, len(query)), **settings
        )
        assert response.tolist() == cut_at_eos(alone[0, len(query) :], [EOS]).tolist()
    assert len({tuple(r.tolist()) for r in together}) == len(queries), "all the same shows nothing"


def test_sampling_follows_the_policy_and_not_the_checkpoints_taste(make_policy):
    """4,000 samples of one token against the softmax, with a generation config full of traps."""
    policy = make_policy("llama", vocab_size=80, layers=1)
    config = policy.pretrained_model.generation_config
    config.do_sample, config.top_k, config.top_p = False, 2, 0.3
    config.temperature, config.repetition_penalty = 0.2, 3.0
    query, n = torch.arange(5, 45), 4000  # long: a repetition penalty would show on 40 tokens
    with torch.no_grad():
        logits = policy(query.unsqueeze(0))[0][0, -1].double()
    expected = logits.softmax(-1).numpy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        responses = generate_responses(
            policy, [query] * n, pad_token_id=PAD, eos_token_id=EOS, max_new_tokens=1
        )
    counts = np.bincount([r.item() for r in responses], minlength=80)
    # Pearson's statistic over the 80 tokens has mean about 79 and deviation about sqrt(2 * 79).
    statistic = ((counts - n * expected) ** 2 / (n * expected)).sum()
    assert statistic < 79 + 6 * (2 * 79) ** 0.5
    assert (counts > 0).sum() > 60, "top-k 50 would have left at most 50 tokens"


def test_an_eos_the_model_knows_does_not_stop_a_response_told_to_have_none(make_policy):
    """The pad tokens that transformers adds after its own EOS are no part of an answer."""
    policy = make_policy("llama", vocab_size=12, layers=1)
    policy.pretrained_model.generation_config.eos_token_id = [3, 4, 5, 6]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        responses = generate_responses(
            policy, [ids(7, 8)] * 20, pad_token_id=11, eos_token_id=None, max_new_tokens=10
        )
    tokens = torch.stack(responses)
    early = torch.isin(tokens[:, :5], ids(3, 4, 5, 6)).any(dim=1)
    assert early.float().mean() > 0.5, "most said one early"
    assert (tokens == 11).float().mean() < 0.2, "padding after it"


# Layout --------------------------------------------------------------------------------------


def test_the_layout_of_a_batch():
    batch = collate([ids(2, 3), ids(4, 5, 6)], [ids(7, 8, EOS), ids(9)], PAD)
    assert batch.input_ids.tolist() == [[0, 2, 3, 7, 8, 1], [4, 5, 6, 9, 0, 0]]
    assert batch.attention_mask.tolist() == [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 3, 3]]
    assert batch.responses.tolist() == [[7, 8, 1], [9, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    # The column before each response token predicts it.
    predicted = batch.input_ids[:, batch.predicting + 1]
    assert predicted.tolist() == batch.responses.tolist()


def test_a_response_mask_leaves_the_tokens_to_be_read_but_not_trained_on():
    masks = [ids(0, 1, 1), ids(1)]
    batch = collate([ids(2), ids(3)], [ids(7, 8, 9), ids(6)], PAD, masks)
    assert batch.mask.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_minibatch_is_the_same_rows_of_everything():
    batch = collate([ids(2, 3), ids(4)], [ids(7), ids(8, 9)], PAD)
    assert batch[ids(1)].trunk_states is None
    batch = replace(batch, trunk_states=torch.randn(2, 5, 3))
    part = batch[ids(1)]
    for name, tensor in vars(batch).items():
        assert torch.equal(getattr(part, name), tensor[1:2])
    assert torch.equal(part.predicting, batch.predicting)


@pytest.mark.parametrize(
    ("queries", "responses", "masks", "message"),
    [
        ([ids(2), ids(2)], [ids(3), ids(3)], [ids(1), ids(0)], r"response_masks\[1\] masks the"),
        ([ids(2), ids(2)], [ids(3, 4), ids(3, 4)], [ids(1, 1), ids(1)], r"response_masks\[1\]"),
        ([ids(2), ids(2)], [ids(3), ids(3)], [ids(1)], "1 response masks for 2 responses"),
    ],
)
def test_what_cannot_be_laid_out_is_refused_in_one_line(queries, responses, masks, message):
    with pytest.raises(ModelError, match=message) as error:
        collate(queries, responses, PAD, masks)
    assert "\n" not in str(error.value)
