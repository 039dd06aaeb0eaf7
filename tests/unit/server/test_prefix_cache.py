"""Which blocks are found, kept and dropped."""

import numpy as np

from server.engines.transformers.prefix_cache import BLOCK, Block, PrefixCache


def fill(cache, ids, monitors="m"):
    for key, _start in list(cache.missing(ids, monitors)):
        cache.store(key, Block([], np.empty((BLOCK, 0), np.float32)))


def test_a_prompt_finds_its_whole_blocks_but_never_its_last_token():
    cache = PrefixCache(10)
    ids = list(range(3 * BLOCK))
    fill(cache, ids)
    assert len(cache) == 3
    assert len(cache.find(ids, "m")) == 2  # the last token must be fed, to have logits
    assert len(cache.find([*ids, 1], "m")) == 3
    assert len(cache.find([*ids[: BLOCK + 5]], "m")) == 1


def test_a_block_depends_on_everything_before_it_and_on_the_monitors():
    cache = PrefixCache(10)
    ids = list(range(2 * BLOCK + 1))
    fill(cache, ids)
    assert cache.find([999, *ids[1:]], "m") == []
    assert cache.find(ids, "other monitors") == []


def test_the_least_recently_used_goes_first_and_zero_is_off():
    cache = PrefixCache(2)
    first, second, third = ([tag] * (BLOCK + 1) for tag in (1, 2, 3))
    fill(cache, first)
    fill(cache, second)
    cache.find(first, "m")
    fill(cache, third)
    assert (len(cache.find(first, "m")), len(cache.find(second, "m"))) == (1, 0)
    off = PrefixCache(0)
    fill(off, first)
    assert off.find(first, "m") == []
