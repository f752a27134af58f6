"""Supervised fine-tuning on one-sentence replies: a control for PPO, and a candidate to start from.

    python scripts/fine_tune.py runs/fine-tuned       # eight minutes on one core

The course's chosen replies are cut to their first sentence, and those of at most 32 tokens are
learned in two epochs, all layers. It is the first stage of InstructGPT (Ouyang et al. 2022, section
3.5), and needs what PPO does without: replies that somebody wrote.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.data import last_reply
from rlhf_tutorial.device import supports_bf16

BATCH_SIZE, EPOCHS, LEARNING_RATE, SEED = 16, 2, 2e-5, 0


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s+", text.strip())[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for the fine-tuned policy")
    args = parser.parse_args()
    run = Run(load_preset("smollm2"))
    model, tokenizer = run.load_policy(), run.load_tokenizer()
    template = run.load_template()
    examples = []
    for text in run.preferences("train")["chosen"][:]:
        turns, reply = last_reply(text)
        said = tokenizer(first_sentence(reply), add_special_tokens=False)["input_ids"]
        said += template.eos_token_ids[:1]
        if len(said) <= run.preset.max_new_tokens:
            asked = template.encode(turns)
            labels = torch.tensor([-100] * len(asked) + said)
            examples.append((torch.tensor(asked + said), labels))
    language_model = model.pretrained_model
    optimizer = torch.optim.AdamW(language_model.parameters(), lr=LEARNING_RATE, weight_decay=0)
    steps = EPOCHS * len(examples) // BATCH_SIZE
    random = torch.Generator().manual_seed(SEED)
    order = torch.cat([torch.randperm(len(examples), generator=random) for _ in range(EPOCHS)])
    bf16 = supports_bf16(run.device)
    for step, rows in enumerate(tqdm(order.split(BATCH_SIZE)[:steps], desc="fine-tuning")):
        ids, labels = zip(*(examples[i] for i in rows), strict=True)
        batch = {
            "input_ids": pad_sequence(ids, True, tokenizer.pad_token_id),
            "labels": pad_sequence(labels, True, -100),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True, 0),
        }
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
            loss = language_model(**{k: v.to(run.device) for k, v in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(language_model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
