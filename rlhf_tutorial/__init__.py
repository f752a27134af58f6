"""RLHF you can run and read: PPO on a chat model with a reward model, from prompts to evaluation."""
