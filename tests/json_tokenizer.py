"""A tokenizer that can write JSON and calls of tools, for the tiny random models: bytes of its own, and a few pairs that cross them."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import VOCAB_SIZE

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<user>", "<assistant>", "<system>")
_BYTES = '{}[]":,\\0123456789-.abcdefghijklmnopqrstuvwxyzĠ_<>/Ċ'
_PAIRS = ('{"', '":', '",', '"}', "ab", "12")

JSON_CHAT_TEMPLATE = (
    "<bos>{% if tools %}<system>{% for t in tools %}{{ t.function.name }} {% endfor %}{# <tool_call></tool_call> #}{% endif %}"
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def json_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as real models have it."""
    pieces = [*_SPECIAL, *_BYTES, *_PAIRS]
    assert len(pieces) <= VOCAB_SIZE
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [(pair[0], pair[1]) for pair in _PAIRS]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="_"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(piece, special=True) for piece in _SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=list(_SPECIAL[3:]),
    )
    tokenizer.chat_template = JSON_CHAT_TEMPLATE
    return tokenizer
