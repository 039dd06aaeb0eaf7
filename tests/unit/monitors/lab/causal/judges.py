"""A behaviour of the user's own."""

from tests.unit.monitors.lab.causal.toy import YES


def yes_logit(logits, example):
    return float(logits[YES])
