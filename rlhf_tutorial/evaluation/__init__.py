"""What training changed: answers before and after, and perplexity on human-preferred text."""
