"""Words do not decide: TF-IDF on words and pairs of words is near chance where the corpus is built for that."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score as auroc
from sklearn.pipeline import make_pipeline

from deploy.demo.corpus.build import rows
from monitors.lab.statistics import tpr_at

NEAR_CHANCE = 0.6


@pytest.fixture(scope="module")
def splits():
    return list(rows(11, "train", 7000)), list(rows(11, "held_out", 3000))


def tfidf(splits, chosen, text, label):
    """Truth and scores of held-out rows, by logistic regression on the training rows' words and word pairs."""
    train, held_out = ([row for row in split if chosen(row)] for split in splits)
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=1000))
    model.fit([text(row) for row in train], [label(row) for row in train])
    truth = np.array([label(row) for row in held_out], dtype=np.int64)
    return truth, model.decision_function([text(row) for row in held_out])


def overlapping(family):
    return lambda row: row.overlap and row.template.startswith(family)


def test_deception_is_not_in_the_words_of_prompt_and_reply(splits):
    text = lambda row: f"{row.prompt}\n{row.reply}"  # noqa: E731
    truth, scores = tfidf(splits, overlapping("deception."), text, lambda row: row.deception)
    assert len(truth) > 300
    assert abs(auroc(truth, scores) - 0.5) < NEAR_CHANCE - 0.5


def test_harm_in_overlapping_wording_is_not_in_the_words_of_the_prompt(splits):
    truth, scores = tfidf(splits, overlapping("harm."), lambda row: row.user_text, lambda row: row.harm)
    assert len(truth) > 300
    assert abs(auroc(truth, scores) - 0.5) < NEAR_CHANCE - 0.5


def test_about_half_of_the_crossing_requests_overlap(splits):
    one_turn = [row for row in splits[0] if row.template.startswith("harm.") and row.num_user_turns == 1]
    assert 0.4 < sum(row.overlap for row in one_turn) / len(one_turn) < 0.6


def test_words_miss_most_harm_at_a_low_false_positive_rate_elsewhere_too(splits):
    chosen = lambda row: row.template.startswith("harm.") and row.num_user_turns == 1  # noqa: E731
    truth, scores = tfidf(splits, chosen, lambda row: row.user_text, lambda row: row.harm)
    assert tpr_at(truth, scores, 0.01).value < 0.5
    assert auroc(truth, scores) < 0.95
