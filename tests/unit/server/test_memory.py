"""The KV cache's budget: what the machine has, what fits, and what is told where it does not."""

import pytest
import torch

from server.assemble import kv_plan
from server.config import ServerConfig
from server.engines.transformers.kv import SlotCache
from server.engines.transformers.model import prepare
from server.memory import MemoryBudgetError, Wanted, budget, choose, free_host_bytes, kv_bytes_per_token
from server.sizes import parse_size, written
from tests.tiny_models import TINY
from tests.tiny_tokenizer import tiny_tokenizer

GIB = 2**30
WANTED = Wanted(max_batch=16, max_context=4096, prefix_tokens=16384)
EACH = 1024  # bytes of a token


def test_what_fits_is_left_as_it_is():
    plan = choose(WANTED, EACH, GIB, "test")
    assert (plan.max_batch, plan.max_context, plan.prefix_tokens) == (16, 4096, 16384)
    assert plan.num_bytes == EACH * (16 * 4097 + 16384)
    assert choose(WANTED, EACH, None, "test").num_bytes == plan.num_bytes


@pytest.mark.parametrize("budget_mib", [70, 40, 20, 5, 2, 1])
def test_what_does_not_fit_is_made_smaller_until_it_does(budget_mib):
    plan = choose(WANTED, EACH, budget_mib * 2**20, "test")
    assert plan.num_bytes <= budget_mib * 2**20
    assert plan.num_bytes > 0.7 * budget_mib * 2**20, "nor smaller than it must be"
    assert plan.max_batch >= 1
    assert plan.max_context >= 256


def test_prefixes_go_first_then_responses_and_the_context_last():
    plans = [choose(WANTED, EACH, mib * 2**20, "test") for mib in (70, 40, 3)]
    assert [(plan.max_batch, plan.max_context) for plan in plans[:2]] == [(16, 4096), (9, 4096)]
    assert plans[0].prefix_tokens < 16384
    assert (plans[2].max_batch, plans[2].max_context < 4096) == (1, True)


def test_what_somebody_asked_for_is_kept_or_refused_never_changed():
    fixed = Wanted(16, 4096, 0, frozenset({"max_batch"}))
    plan = choose(fixed, EACH, 20 * 2**20, "test")
    assert (plan.max_batch, plan.max_context) == (16, 1279)
    both = Wanted(16, 4096, 0, frozenset({"max_batch", "max_context"}))
    with pytest.raises(MemoryBudgetError) as error:
        choose(both, EACH, 20 * 2**20, "half of little")
    for told in ("64.0 MiB for 16 responses of 4096 tokens", "20.0 MiB (half of little)", "--max-batch"):
        assert told in str(error.value)


def test_a_machine_with_room_for_nothing_is_refused():
    with pytest.raises(MemoryBudgetError):
        choose(WANTED, EACH, 1000, "test")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_the_size_of_a_token_is_what_the_cache_allocates(name):
    model = TINY[name]()
    loaded = prepare(model, tiny_tokenizer(), model_id=name)
    cache = SlotCache(num_layers=len(loaded.blocks.layers), num_slots=3, capacity=11)
    cache.prefill(0, 0, 4)
    with torch.inference_mode():
        model(input_ids=torch.zeros((1, 4), dtype=torch.long), past_key_values=cache)
    allocated = sum(
        states.numel() * states.element_size()
        for layer in cache.layers
        for states in (layer.keys, layer.values)
    )
    assert kv_bytes_per_token(model) * 3 * 11 == allocated


def test_a_model_that_keeps_something_else_is_left_to_the_engine():
    class Odd:
        device = torch.device("cpu")

        def __call__(self, **_):
            raise TypeError("no cache here")

    assert kv_bytes_per_token(Odd()) is None
    plan = choose(WANTED, None, 10, "test")
    assert (plan.max_batch, plan.num_bytes) == (16, 0)


def test_the_settings_make_the_plan():
    loaded = prepare(TINY["llama"](), tiny_tokenizer(), model_id="tiny")
    whole = kv_plan(ServerConfig(), loaded)
    assert whole.max_batch == 16
    small = kv_plan(ServerConfig(kv_memory="0.5MiB"), loaded)
    assert small.num_bytes <= 2**19
    with pytest.raises(MemoryBudgetError):
        kv_plan(ServerConfig(kv_memory="0.01MiB", max_batch=16, max_context=256), loaded)
    with pytest.raises(ValueError, match="4GiB"):
        ServerConfig(kv_memory="lots")


def machine(root, available_kib=8_000_000, **group):
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:    {available_kib} kB\n")
    folder = root / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    for name, value in group.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{value}\n")
    return root


def test_the_budget_is_a_share_of_what_is_free(tmp_path):
    root = machine(tmp_path)
    assert free_host_bytes(root) == 8_000_000 * 1024
    found, told = budget("auto", torch.device("cpu"), root)
    assert (found, told) == (4_000_000 * 1024, "50% of 7.6 GiB free")


def test_a_containers_limit_counts_where_it_is_less(tmp_path):
    stat = "anon 1\ninactive_file 1000\n"
    root = machine(tmp_path, memory_max=2 * GIB, memory_current=GIB, memory_stat=stat)
    assert free_host_bytes(root) == GIB + 1000


def test_a_container_without_a_limit_has_the_machines(tmp_path):
    root = machine(tmp_path, memory_max="max", memory_current=GIB, memory_stat="inactive_file 1")
    assert free_host_bytes(root) == 8_000_000 * 1024


def test_where_nothing_is_known_nothing_is_changed(tmp_path):
    found, told = budget("auto", torch.device("cpu"), tmp_path)
    assert found is None
    assert "not known" in told
    assert budget("3GiB", torch.device("cpu"), tmp_path) == (3 * GIB, "INTERLOCK__KV_MEMORY")


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 * GIB), ("1.5 GB", 1_500_000_000), ("512MiB", 512 * 2**20)]
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "4", "4gib", "-1GiB", "0GiB", "GiB", "1e3GiB", "4GiB "])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="4GiB"):
        parse_size(text)


def test_sizes_are_written_for_people():
    assert (written(3 * GIB), written(GIB // 2)) == ("3.0 GiB", "512.0 MiB")
