"""Sampling, where responses begin and end, and the layout of a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.models import SMALL_VOCABULARY, small_policy
from support.scripted import Scripted
from support.strategies import (
    MATH,
    MODEL,
    SIX,
    TWO_KINDS,
    Samples,
    conversations,
    sample_lists,
    tensors,
)
from support.tokenizers import EOS, PAD
from torch import Tensor

from rlhf_tutorial.errors import ModelError
from rlhf_tutorial.families import after_end
from rlhf_tutorial.models import create_reference_model
from rlhf_tutorial.ppo.rollout import collate, cut_at_eos, generate_responses, pad

OTHER_EOS = 9


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


@MATH
@given(row=st.lists(st.integers(0, 4), max_size=8), eos=st.sets(st.integers(0, 4)))
@example(row=[5, EOS, PAD, PAD], eos={EOS, OTHER_EOS})
@example(row=[EOS, PAD], eos={EOS, OTHER_EOS})
@example(row=[5, 6], eos={EOS, OTHER_EOS})
@example(row=[5, OTHER_EOS, 6, EOS], eos={EOS, OTHER_EOS})
@example(row=[EOS, EOS], eos={EOS, OTHER_EOS})
@example(row=[5, EOS, 6], eos=set())
def test_a_cut_response_is_its_shortest_beginning_that_ends_with_eos(row, eos):
    ended = [row[:n] for n in range(1, len(row) + 1) if row[n - 1] in eos]
    response = torch.tensor(row, dtype=torch.long)
    cut = ended[0] if ended else row
    assert cut_at_eos(response, eos).tolist() == cut
    assert int((~after_end(response.unsqueeze(0), eos)).sum()) == len(cut), "as for many at once"


# Responses from a model that says what it is told --------------------------------------------

# Early EOS, EOS at once, none, and another EOS; EOS and padding stand in the queries, too.
FOUR = (
    [[2, EOS, 3, 100], [101], [EOS, 102], [PAD, PAD, 103]],
    [[5, 6, EOS, 7, 7], [EOS, 7, 7, 7, 7], [5, 6, 7, 8, 5], [5, OTHER_EOS, 7, 7, 7]],
    [[5, 6, EOS], [EOS], [5, 6, 7, 8, 5], [5, OTHER_EOS]],
)


@MATH
@given(
    conversation=conversations(),
    eos=st.just([EOS]),
    batch_size=st.none() | st.integers(1, 6),
)
@example(conversation=FOUR, eos=[EOS, OTHER_EOS], batch_size=None)
def test_responses_hold_no_prompt_token_however_early_they_end(conversation, eos, batch_size):
    """A response is what was said up to EOS, and nothing of the prompt."""
    queries, answers, expected = conversation
    responses, _ = generate_responses(
        Scripted(answers, PAD, eos),
        tensors(queries),
        pad_token_id=PAD,
        eos_token_id=eos,
        batch_size=batch_size,
    )
    assert [r.tolist() for r in responses] == expected
    for response in responses:
        assert (response < 100).all(), "a token of the prompt"
        assert torch.isin(response, torch.tensor(eos)).sum() == int(response[-1] in eos)


@MATH
@given(conversation=conversations())
@example(
    conversation=(
        [[100], [102]],
        [[5, 6, EOS, 7, 7], [5, 6, 7, 8, 5]],
        [[5, 6, EOS], [5, 6, 7, 8, 5]],
    )
)
def test_a_response_ends_once_where_padding_is_eos(conversation):
    queries, answers, expected = conversation
    # Whatever stands for padding here would end the answer.
    queries, answers, expected = (
        [[50 if token == PAD else token for token in row] for row in rows]
        for rows in (queries, answers, expected)
    )
    model = Scripted(answers, EOS, [EOS])
    responses, _ = generate_responses(model, tensors(queries), pad_token_id=EOS, eos_token_id=EOS)
    assert [r.tolist() for r in responses] == expected


def test_batches_keep_the_order_and_pad_only_to_their_own_longest():
    queries, answers, expected = FOUR
    queries = [[2, 2, 100], [101], [102], [3, 103], [101]]
    answers, expected = [*answers, answers[1]], [*expected, expected[1]]
    scripted, drawn = Scripted(answers, PAD, [EOS, OTHER_EOS]), iter([5, 3, 4])
    responses, _ = generate_responses(
        scripted,
        tensors(queries),
        pad_token_id=PAD,
        eos_token_id=[EOS, OTHER_EOS],
        batch_size=2,
        length_sampler=lambda: next(drawn),
    )
    assert [r.tolist() for r in responses] == expected
    assert [tuple(c["input_ids"].shape) for c in scripted.calls] == [(2, 3), (2, 2), (1, 1)]
    assert [c["max_new_tokens"] for c in scripted.calls] == [5, 3, 4]
    assert scripted.calls[0]["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


# Responses from real models ------------------------------------------------------------------


@pytest.mark.parametrize("kind", TWO_KINDS)
@pytest.mark.parametrize("shared", [None, 1])
@MODEL
@given(samples=sample_lists(), n=st.integers(1, 6), sampling=st.booleans())
@example(samples=SIX, n=8, sampling=False)
def test_a_model_answers_a_batch_as_a_slow_loop_would_each_query(
    kind, shared, samples, n, sampling
):
    """Without padding, cache or trunk. One token in three ends the answer."""
    policy = small_policy(kind)
    create_reference_model(policy, shared)
    # So sure of its best token that a sample is always that.
    head = policy.pretrained_model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: 1e6 * logits)
    eos = [EOS, *range(SMALL_VOCABULARY - 7, SMALL_VOCABULARY)]
    responses, _ = generate_responses(
        policy,
        tensors(samples.queries),
        pad_token_id=PAD,
        eos_token_id=eos,
        do_sample=sampling,
        max_new_tokens=n,
    )
    for query, response in zip(samples.queries, responses, strict=True):
        said = list(query)
        while len(said) < len(query) + n and not (len(said) > len(query) and said[-1] in eos):
            with torch.no_grad():
                logits = policy.pretrained_model(torch.tensor([said])).logits
            said.append(int(logits[0, -1].argmax()))
        assert response.tolist() == said[len(query) :]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampling_follows_the_policy_and_not_the_checkpoints_taste(make_policy, temperature):
    """4,000 samples of one token against the softmax, with a generation config full of traps."""
    policy = make_policy("llama", vocab_size=80, layers=1)
    config = policy.pretrained_model.generation_config
    config.do_sample, config.top_k, config.top_p = False, 2, 0.3
    config.temperature, config.repetition_penalty = 0.2, 3.0
    query, n = torch.arange(5, 45), 4000  # long: a repetition penalty would show on 40 tokens
    with torch.no_grad():
        logits = policy(query.unsqueeze(0))[0][0, -1].double()
    expected = (logits / temperature).softmax(-1).numpy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        responses, _ = generate_responses(
            policy,
            [query] * n,
            pad_token_id=PAD,
            eos_token_id=EOS,
            max_new_tokens=1,
            temperature=temperature,
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
        responses, _ = generate_responses(
            policy, [ids(7, 8)] * 20, pad_token_id=11, eos_token_id=None, max_new_tokens=10
        )
    tokens = torch.stack(responses)
    early = torch.isin(tokens[:, :5], ids(3, 4, 5, 6)).any(dim=1)
    assert early.float().mean() > 0.5, "most said one early"
    assert (tokens == 11).float().mean() < 0.2, "padding after it"


# Layout --------------------------------------------------------------------------------------


@MATH
@given(samples=sample_lists(masked=True))
@example(samples=Samples([[2, 3], [4, 5, 6]], [[7, 8, EOS], [9]], [0.0, 1.0]))
def test_the_layout_of_any_batch_holds_every_token_in_its_place(samples):
    """Queries padded on the left, responses on the right, so that all responses begin together."""
    queries, responses, _, masks = samples.arguments
    batch = collate(queries, responses, PAD, masks)
    assert torch.equal(batch.mask.bool(), samples.kept)
    before = max(len(q) for q in queries)
    width = before + max(len(r) for r in responses)
    for i, (query, response) in enumerate(zip(samples.queries, samples.responses, strict=True)):
        left, right = before - len(query), width - before - len(response)
        n = len(query) + len(response)
        assert batch.input_ids[i].tolist() == [PAD] * left + query + response + [PAD] * right
        assert batch.attention_mask[i].tolist() == [0] * left + [1] * n + [0] * right
        assert batch.position_ids[i].tolist() == [0] * left + [*range(n)] + [n - 1] * right
        assert batch.responses[i].tolist() == response + [PAD] * right
    # The column before each response token predicts it: the query's last one the first.
    assert batch.predicting.tolist() == list(range(before - 1, width - 1))
    assert torch.equal(batch.input_ids[:, batch.predicting + 1], batch.responses)


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
