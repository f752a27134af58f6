"""You are the human: label answers, train a judge on your labels, steer the policy, test it blind.

Everything that a reader leaves is under `human/` in the run's folder, and nowhere else:
`labels.jsonl` (see `labels_path`), the pairs that were shown, the judge in `judge/`, the policy
that was steered by it in `policy/`. `start_labelling` in `widget.py` is how a notebook asks.
"""
