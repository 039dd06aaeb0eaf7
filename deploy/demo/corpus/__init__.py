"""The demo's synthetic chat corpus: grammar, planted behaviours, and ground truth for every prompt."""
