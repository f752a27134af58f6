"""From preference dialogues to queries: parsing, filters, files."""

from __future__ import annotations

import datasets
import pytest
import torch
from support.dialogues import TURNS, dataset, dialogue
from support.errors import one_line

from rlhf_tutorial.data import (
    first_prompt,
    last_reply,
    load_preferences,
    load_queries,
    parse_dialogue,
    prepare_queries,
)
from rlhf_tutorial.errors import AssetError, DataError
from rlhf_tutorial.template import DLITE

# Dialogues -----------------------------------------------------------------------------------


def test_a_dialogue_is_its_turns():
    assert parse_dialogue(TURNS) == [
        ("Human", "How do I\nbake bread?"),
        ("Assistant", "With flour.\n\nIt takes an hour."),
        ("Human", "And then?"),
        ("Assistant", "Eat it."),
    ]
    assert parse_dialogue("no turns at all") == []


def test_the_prompt_is_the_first_human_turn_on_one_line():
    assert first_prompt(TURNS) == "How do I bake bread?"
    assert first_prompt("\n\nHuman: \n\nAssistant: Hello!") == ""
    assert first_prompt("\n\nHuman: Is anybody there?") is None
    assert first_prompt("\n\nAssistant: Nobody asked.") is None
    assert first_prompt("Human: no blank line before it. Assistant: none here.") is None


def test_on_an_ordinary_row_the_prompt_is_the_original_tutorials():
    for prompt in ("What is\nHTML?", " spaces around ", "ends with a colon:"):
        text = dialogue(prompt)
        theirs = text[len("\n\nHuman: ") : text.find("Assistant:")].replace("\n", " ").strip()
        assert first_prompt(text) == theirs


def test_the_word_assistant_inside_a_request_does_not_end_it():
    prompt = "Write an ad: Wanted, Shop Assistant: full time"
    text = dialogue(prompt)
    assert first_prompt(text) == prompt
    assert text[len("\n\nHuman: ") : text.find("Assistant:")].strip() != prompt  # the original's


def test_the_last_reply_and_what_was_said_before():
    before, reply = last_reply(TURNS)
    assert reply == "Eat it." and [role for role, _ in before] == ["Human", "Assistant", "Human"]
    assert last_reply(TURNS + "\n\nHuman: Thanks!")[1] == "Eat it."
    assert last_reply("\n\nAssistant: Hello.") is None
    assert last_reply("\n\nHuman: Hello?\n\nAssistant:") is None
    assert last_reply("\n\nHuman: Hello?") is None


# Where rows come from ------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
def test_a_folder_laid_out_as_hh_rlhf(compressed, make_hh_folder):
    rows = [{"chosen": dialogue(f"Question {i}?"), "rejected": dialogue("-")} for i in range(3)]
    make_hh_folder(rows, "train", compressed=compressed)
    folder = make_hh_folder(rows[:1], "test", compressed=compressed)
    for source in (folder, str(folder)):
        train = load_preferences(source, "train", "helpful-base")
        assert train["chosen"][:] == [row["chosen"] for row in rows]
    assert len(load_preferences(folder, "test", "helpful-base")) == 1
    assert len(load_preferences(folder / "helpful-base", "test")) == 1


def test_a_dataset_in_memory_is_taken_as_it_is():
    rows = dataset(TURNS)
    assert load_preferences(rows, "train") is rows


def test_a_missing_split_folder_or_a_broken_file_is_named_in_one_line(make_hh_folder):
    folder = make_hh_folder([{"chosen": TURNS, "rejected": TURNS}])
    with pytest.raises(DataError, match="neither test.jsonl nor test.jsonl.gz") as error:
        load_preferences(folder, "test", "helpful-base")
    one_line(error)
    with pytest.raises(AssetError, match="neither an existing folder") as error:
        load_preferences(str(folder / "nothing" / "here"))
    one_line(error)
    (folder / "helpful-base" / "test.jsonl").write_text('{"chosen": "cut off in the mi')
    with pytest.raises(DataError, match="test.jsonl, line 1: it is not JSON") as error:
        load_preferences(folder, "test", "helpful-base")
    one_line(error)


# Queries -------------------------------------------------------------------------------------


def test_rows_are_kept_dropped_and_counted(tokenizer):
    rows = dataset(
        dialogue("kept"),
        dialogue("x" * 99),  # shorter than 100: kept
        dialogue("x" * 100),
        "no dialogue",
        None,
        "\n\nHuman: unanswered",
        dialogue("   "),
        dialogue("kept, too"),
        dialogue("one too many"),
    )
    queries, report = prepare_queries(rows, DLITE.bind(tokenizer), limit=3)
    assert queries["query"][:] == ["kept", "x" * 99, "kept, too"]
    assert vars(report) == {
        "rows": 9,
        "kept": 3,
        "not_text": 1,
        "no_turns": 2,
        "empty": 1,
        "too_long": 1,
        "no_room": 0,
        "beyond_limit": 1,
    }
    text = str(report)
    assert text.startswith("3 prompts from 9 rows (dropped: 1 without text, 2 without a human")
    assert "1 beyond" in text
    _, report = prepare_queries(rows.select([0]), DLITE.bind(tokenizer))
    assert str(report) == "1 prompts from 1 rows"


def test_a_query_needs_room_for_its_response(tokenizer):
    rows = dataset(dialogue("short"), dialogue("rather longer than that"))
    length = len(DLITE.bind(tokenizer).encode("short"))
    for context, kept in ((length + 16, 1), (length + 15, 0)):
        settings = {"max_new_tokens": 16, "context_length": context}
        if kept:
            queries, report = prepare_queries(rows, DLITE.bind(tokenizer), **settings)
            assert queries["query"][:] == ["short"] and report.no_room == 1
        else:
            with pytest.raises(DataError, match="no usable prompt is left: 0 prompts from 2") as e:
                prepare_queries(rows, DLITE.bind(tokenizer), **settings)
            one_line(e)


def test_a_missing_column_is_named(tokenizer):
    rows = datasets.Dataset.from_dict({"question": ["a"], "answer": ["b"]})
    known = (
        r"no column 'chosen', 'prompt' or 'messages' \(it has question, answer\): rename .* forms"
    )
    with pytest.raises(DataError, match=known) as error:
        prepare_queries(rows, DLITE.bind(tokenizer))
    one_line(error)


def test_queries_are_tensors_and_survive_the_disk(tokenizer, tmp_path):
    queries, _ = prepare_queries(dataset(dialogue("a"), dialogue("bcd")), DLITE.bind(tokenizer))
    queries.save_to_disk(str(tmp_path / "queries"))
    for rows in (queries, load_queries(tmp_path / "queries")):
        assert rows.column_names == ["query", "input_ids"]
        row = rows[1]
        assert row["query"] == "bcd" and row["input_ids"].dtype == torch.long
        rendered = DLITE.bind(tokenizer).render([("Human", "bcd")])
        assert tokenizer.decode(row["input_ids"]) == rendered
