"""Masks against their definition; rows of the cache keep to themselves."""

import torch

from server.engines.transformers.kv import SlotCache
from server.engines.transformers.masks import CHUNKED, FULL, SLIDING, MaskForm


def test_masks_follow_their_definition():
    form = MaskForm((FULL, SLIDING, CHUNKED), as_dict=True, window=3, chunk=4)
    position = torch.tensor([[5], [2]])
    masks = form.build(position, 6, torch.float32)
    for row, query in enumerate((5, 2)):
        for key in range(6):
            causal = key <= query
            allowed = {
                FULL: causal,
                SLIDING: causal and key > query - 3,
                CHUNKED: causal and key // 4 == query // 4,
            }
            for kind, want in allowed.items():
                assert (masks[kind][row, 0, 0, key] == 0) == want


def write(cache, value, heads=2):
    """Pretend to be a layer that computes constant keys and values."""
    current = cache.current
    rows = 1 if hasattr(current, "row") else len(current.position)
    length = current.end - current.start if hasattr(current, "row") else 1
    states = torch.full((rows, heads, length, 4), float(value))
    return cache.layers[0].update(states, states)


def test_rows_keep_to_themselves_and_see_their_own_past():
    cache = SlotCache(num_layers=1, num_slots=3, capacity=8)
    cache.prefill(0, 0, 3)
    write(cache, 1)
    cache.prefill(1, 0, 2)
    write(cache, 2)
    cache.prefill(0, 3, 4)
    keys, _ = write(cache, 3)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 3]
    cache.decode(0, torch.tensor([4, 2]), 5)
    keys, _ = write(cache, 4)
    assert keys[:, 0, :, 0].tolist() == [[1, 1, 1, 3, 4], [2, 2, 4, 0, 0]]


def test_a_moved_row_and_a_restored_one_are_the_same():
    cache = SlotCache(num_layers=1, num_slots=3, capacity=8)
    for row, value in enumerate((5, 6)):
        cache.prefill(row, 0, 3)
        write(cache, value)
    cache.move_row(1, 2, 3)
    cache.write(0, 0, cache.read(2, 0, 2))
    assert cache.layers[0].keys[0, 0, :3, 0].tolist() == [6, 6, 5]
    assert cache.layers[0].keys[2, 0, :3, 0].tolist() == [6, 6, 6]
