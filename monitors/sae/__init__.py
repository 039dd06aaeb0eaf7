"""Sparse autoencoders of other projects, read feature by feature. A new format is a file and a line here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from monitors.sae.base import SaeError, SparseAutoencoder
from monitors.sae.converted import read_goodfire, read_openai, read_qresearch, read_qwen_scope
from monitors.sae.dictionary_learning import read_dictionary_learning
from monitors.sae.gemma_scope import read_gemma_scope, read_gemma_scope_2
from monitors.sae.llama_scope import read_llama_scope, read_llama_scope_r1
from monitors.sae.saelens import read_saelens
from monitors.sae.sparsify import read_sparsify


def _refuse_mwhanna(folder: Path) -> NoReturn:
    raise SaeError(
        f"{folder}: mwhanna's are transcoders: they read the MLP's input, which is not a hook point here"
    )


SAE_FORMATS: Mapping[str, Callable[[Path], SparseAutoencoder]] = {
    "saelens": read_saelens,
    "gemma_scope": read_gemma_scope,
    "gemma_scope_2": read_gemma_scope_2,
    "llama_scope": read_llama_scope,
    "llama_scope_r1": read_llama_scope_r1,
    "sparsify": read_sparsify,
    "dictionary_learning": read_dictionary_learning,
    "openai": read_openai,
    "goodfire": read_goodfire,
    "qresearch": read_qresearch,
    "qwen_scope": read_qwen_scope,
    "mwhanna": _refuse_mwhanna,
}
