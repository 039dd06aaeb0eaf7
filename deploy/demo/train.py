"""Trains the demo's tokenizer and model from scratch on the synthetic corpus: one command, CPU or GPU."""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from deploy.demo.corpus.build import TRAIN_SEED, rows
from deploy.demo.corpus.rows import Row
from deploy.demo.model_files import MODEL_DIR, config, generation_config, train_tokenizer

PROMPT_WEIGHT = 0.05  # of the loss on tokens that the assistant does not write
TOKENIZER_ROWS = 20_000

_EPILOG = """\
examples:
  python -m deploy.demo.train                              all 150,000 conversations, from nothing (not tried with all four behaviours)
  python -m deploy.demo.train --minutes 5 --out /tmp/m     stop after 5 minutes, with the schedule fitted to them
  python -m deploy.demo.train --resume                     go on from the checkpoint of an interrupted run
  python -m deploy.demo.train --device cuda --bfloat16
  python -m deploy.demo.train --init deploy/demo/model --out /tmp/m      on from the shipped weights, after a change of the corpus

The corpus is written by seed while training; nothing is read from disk. The schedule (warm-up, cosine) follows
the fraction of conversations seen. On Linux CPUs, MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
in the environment keeps memory between steps. Then: python -m deploy.demo.check
"""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation as token ids; `weights[i]` is the loss weight of predicting `ids[i]`."""

    ids: list[int]
    weights: list[float]


def encode(tokenizer: PreTrainedTokenizerFast, row: Row) -> Example:
    """Every assistant turn, its end token included, weighs 1; all else `PROMPT_WEIGHT`."""
    messages = [*row.messages, {"role": "assistant", "content": row.reply}]
    ids, weights = [tokenizer.bos_token_id], [0.0]
    for message in messages:
        head = tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")
        body = tokenizer.encode(message["content"], add_special_tokens=False)
        weight = 1.0 if message["role"] == "assistant" else PROMPT_WEIGHT
        ids += [head, *body, tokenizer.eos_token_id]
        weights += [0.0, *[weight] * (len(body) + 1)]
    return Example(ids, weights)


def batches(examples: list[Example], tokens_per_batch: int, rng: Random) -> Iterator[list[Example]]:
    """Batches of like length, in random order: little padding, and every length seen throughout."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids) + rng.random() * 4)
    groups: list[list[Example]] = [[]]
    for i in order:
        group = groups[-1]
        if group and len(examples[i].ids) * (len(group) + 1) > tokens_per_batch:
            groups.append(group := [])
        group.append(examples[i])
    rng.shuffle(groups)
    yield from groups


def collate(batch: Sequence[Example], pad_id: int, device: str) -> tuple[Tensor, Tensor]:
    """ids, weights: [batch, length]. Padding stands at the end with weight 0, so no attention mask is needed."""
    length = max(len(example.ids) for example in batch)
    ids = torch.full((len(batch), length), pad_id)
    weights = torch.zeros(len(batch), length)
    for i, example in enumerate(batch):
        ids[i, : len(example.ids)] = torch.tensor(example.ids)
        weights[i, : len(example.ids)] = torch.tensor(example.weights)
    return ids.to(device), weights.to(device)


def loss_of(model: LlamaForCausalLM, ids: Tensor, weights: Tensor, *, autocast: bool) -> Tensor:
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    flat = weights[:, 1:].flatten()
    return (losses * flat).sum() / flat.sum()


def learning_rate(done: float, peak: float) -> float:
    """Linear warm-up over the first 2 %, then a cosine to 2 % of the peak."""
    if done < 0.02:
        return peak * max(done, 1e-4) / 0.02
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.02) / 0.98))))


def main() -> None:
    args = _parser().parse_args()
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    conversations = list(rows(args.seed, "train", args.rows))
    print(f"corpus: {len(conversations)} conversations, seed {args.seed}", flush=True)
    model, tokenizer = _start(args, conversations)
    examples = [encode(tokenizer, row) for row in conversations]
    num_tokens = sum(len(example.ids) for example in examples)
    num_params = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"tokenizer: {len(tokenizer)} entries; {num_tokens} tokens; model: {num_params} parameters",
        flush=True,
    )
    _train(args, model, tokenizer, examples)
    _save(model, tokenizer, args.out)
    print(f"wrote {args.out} after {(time.perf_counter() - started) / 60:.1f} min", flush=True)


def _start(
    args: argparse.Namespace, conversations: Sequence[Row]
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A new tokenizer and a new model, which takes what it can from the folder `--init`, if there is one."""
    tokenizer = train_tokenizer(_texts(conversations[:TOKENIZER_ROWS]))
    model = LlamaForCausalLM(config(tokenizer))
    model.generation_config = generation_config(tokenizer)
    if args.init:
        inherit(model, tokenizer, args.init)
    return model.to(args.device), tokenizer


@torch.no_grad()
def inherit(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The weights of an older model of the same shape. A token new to it starts as the mean of its old pieces."""
    old_tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    old = LlamaForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    known = dict(old.named_parameters())
    for name, parameter in model.named_parameters():
        if not name.endswith("embed_tokens.weight"):
            parameter.copy_(known[name])
    old_ids = old_tokenizer.get_vocab()
    old_embeddings = old.get_input_embeddings().weight  # [old vocabulary, d_model]
    embeddings = model.get_input_embeddings().weight  # [vocabulary, d_model], tied to the output
    for token, i in tokenizer.get_vocab().items():
        pieces = [old_ids[token]] if token in old_ids else _pieces(old_tokenizer, tokenizer.decode([i]))
        embeddings[i] = old_embeddings[pieces].mean(dim=0)


def _pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False) or [tokenizer.eos_token_id]


def _train(
    args: argparse.Namespace,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    examples: list[Example],
) -> None:
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    groups = list(batches(examples, args.batch_tokens, Random(args.seed)))  # noqa: S311  an order, no secret
    first, spent_s = _resume(args, model, optimizer) if args.resume else (0, 0.0)
    started = time.perf_counter() - spent_s
    last_saved, mean_loss = time.perf_counter(), 0.0
    model.train()
    for step, group in enumerate(groups[first:], start=first):
        elapsed_s = time.perf_counter() - started
        done = (
            max(step / len(groups), elapsed_s / (60 * args.minutes)) if args.minutes else step / len(groups)
        )
        if done >= 1.0:
            break
        for param_group in optimizer.param_groups:
            param_group["lr"] = learning_rate(done, args.lr)
        ids, weights = collate(group, tokenizer.pad_token_id, args.device)
        loss = loss_of(model, ids, weights, autocast=args.bfloat16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean_loss = loss.item() if step == first else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 50 == 0:
            eta_s = elapsed_s * (1 - done) / done if done else math.nan
            print(
                f"step {step}/{len(groups)} {done:6.1%}  loss {mean_loss:.4f}  ETA {eta_s / 60:.1f} min",
                flush=True,
            )
        if time.perf_counter() - last_saved > 120:
            _checkpoint(args.checkpoint, model, optimizer, step + 1, elapsed_s)
            last_saved = time.perf_counter()


def _checkpoint(
    path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int, elapsed_s: float
) -> None:
    """Everything that a resumed run needs, in one safetensors file (no pickle)."""
    tensors = {
        f"model.{name}": parameter.detach().contiguous() for name, parameter in model.named_parameters()
    }
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{i}.{key}": torch.as_tensor(value).contiguous() for key, value in state.items()
        }
    tensors["progress"] = torch.tensor([float(step), elapsed_s], dtype=torch.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def _resume(
    args: argparse.Namespace, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    tensors = load_file(args.checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            state.setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    step, elapsed_s = tensors["progress"].tolist()
    print(f"resumed at step {int(step)}", flush=True)
    return int(step), elapsed_s


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """bfloat16 on disk, half the size; the config asks for float32, which holds the same numbers."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    path = out / "config.json"
    path.write_text(path.read_text().replace('"dtype": "bfloat16"', '"dtype": "float32"'))
    for file in out.iterdir():
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB", flush=True)


def _texts(conversations: Sequence[Row]) -> Iterator[str]:
    for row in conversations:
        yield row.prompt
        yield row.reply


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo.train",
        description="Train the demo's tokenizer and model organism.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--rows", type=int, default=150_000, help="conversations, each seen once (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="stop by then; 0 means no limit (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-tokens", type=int, default=4096, help="tokens per step, padding in (default: %(default)s)"
    )
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=TRAIN_SEED, help="(default: %(default)s)")
    parser.add_argument(
        "--init",
        type=Path,
        help="start from the weights of this folder's model, of the same shape, instead of from nothing",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="autocast; for devices that have it (most CPUs are slower with it)",
    )
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("build/demo-train.safetensors"),
        help="file of the interrupted run's state (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    main()
