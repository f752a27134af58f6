"""How often the processor waits for a GPU: not for every answer, counted on a CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from support.cuda import WAITS
from support.graphed import Graphed
from support.models import VOCABULARY
from support.trainers import forget_accelerate
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_tutorial.ppo.passes import RecordedPasses


class Waits(TorchDispatchMode):
    """Counts the operations that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = f.overloadpacket.__name__
        if name in WAITS:
            self.counted[name] += 1
        return f(*args, **(kwargs or {}))


@pytest.mark.parametrize("return_prompt", [False, True])
def test_more_answers_wait_no_more_often(return_prompt, make_trainer):
    found = []
    for n in (4, 64):
        trainer = make_trainer("llama", 2, batch_size=n, mini_batch_size=n, ppo_epochs=2)
        trainer.recorded = {
            m: RecordedPasses(m, Graphed) for m in (trainer.model, trainer.ref_model)
        }
        random = torch.Generator().manual_seed(0)
        queries = [torch.randint(3, VOCABULARY, (3 + i % 4,), generator=random) for i in range(n)]
        responses = torch.randint(3, VOCABULARY, (n, 8), generator=random)
        # Some end early; that of the plain loop is waited for at every token.
        responses[::3, 5] = 1
        trainer.policy.sample = lambda ids, mask, r=responses, **_: (torch.cat([ids, r], 1), None)
        trainer.step(queries, [*responses], [0.0] * n)  # records
        with Waits() as generate:
            told = {"return_prompt": return_prompt, "max_new_tokens": 8}
            answers = trainer.generate(queries, **told)
        assert len(answers[0]) == 6 + return_prompt * 3
        with Waits() as step:
            trainer.step(queries, answers, [float(i % 3) for i in range(n)])
        found.append((generate.counted, step.counted))
        forget_accelerate()
    assert found[0] == found[1]
    generate, step = found[0]
    assert sum(generate.values()) <= 5 and sum(step.values()) <= 40, found[0]
