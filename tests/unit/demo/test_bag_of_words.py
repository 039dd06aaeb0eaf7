"""Single words do not tell harm from harmlessness: a classifier on them stays well below the probe."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from deploy.demo.corpus.build import rows
from deploy.demo.figures import auroc, tpr_at


def crossing(split, num_rows):
    chosen = [
        row
        for row in rows(11, split, num_rows)
        if row.template.startswith("harm.") and len(row.messages) == 1
    ]
    return [row.user_text for row in chosen], np.array([row.harm for row in chosen])


@pytest.fixture(scope="module")
def scores():
    model = make_pipeline(CountVectorizer(binary=True), LogisticRegression(max_iter=500))
    model.fit(*crossing("train", 6000))
    texts, truth = crossing("held_out", 3000)
    return truth, model.decision_function(texts)


def test_single_words_miss_most_harm_at_a_low_false_positive_rate(scores):
    truth, decision = scores
    assert tpr_at(truth, decision, 0.01) < 0.5


def test_single_words_rank_well_below_perfect(scores):
    truth, decision = scores
    assert auroc(truth, decision) < 0.95
