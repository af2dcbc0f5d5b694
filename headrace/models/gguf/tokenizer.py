"""The tokenizer inside a GGUF file, built with the ``tokenizers`` library and given as a transformers tokenizer.

transformers' own conversion knows no pre-tokenizers: it would, for one, leave digits together where the file says to
split them. The names in ``tokenizer.ggml.pre`` and what they mean are llama.cpp's (src/llama-vocab.cpp there).
Knows no weights and no configuration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf.constants import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from headrace.errors import ConfigError
from headrace.models.gguf.reader import GgufFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPACE = "▁"  # stands for a space in SentencePiece vocabularies

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CASED_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{suffix}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{suffix}"
)
DIGIT = r"\p{N}"
CHINESE_JAPANESE = "[一-龥\u3040-ゟ゠-ヿ]+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = CONTRACTION + (r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", DIGIT)
SEED = QWEN2.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")
CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = CASED_WORD.replace("{suffix}", "") + "|" + DIGIT + CASED_TAIL
GPT4O = CASED_WORD.replace("{suffix}", CONTRACTION + "?") + r"|\p{N}{1,3}" + CASED_TAIL
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Pre:
    """How text is cut before merging: by each pattern in turn, what matches and what lies between."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token is taken whole
    add_bos: bool = False  # unless the file says otherwise


def _by_name(groups: Mapping[str, Pre]) -> dict[str, Pre]:
    return {name: pre for names, pre in groups.items() for name in names.split()}


PRE_TOKENIZERS = _by_name(
    {
        "default": Pre((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        "gpt-2 phi-2 mpt olmo jais trillion exaone4 gigachat mellum granite-docling a.x-4.0": Pre((GPT2,)),
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": Pre((DIGIT, GPT2)),
        "falcon": Pre((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2": Pre((LLAMA3,), True, True),
        "dbrx smaug-bpe chatglm-bpe": Pre((LLAMA3,)),
        "glm4": Pre((LLAMA3,), ignore_merges=True),
        "qwen2 stablelm2 deepseek-r1-qwen hunyuan megrez kormo solar-open grok-2": Pre((QWEN2,)),
        "seed-coder": Pre((SEED,)),
        "tekken": Pre((TEKKEN,), True, True),
        "gpt-4o llama4": Pre((GPT4O,)),
        "deepseek-v3 hunyuan-dense": Pre((r"\p{N}{1,3}", CHINESE_JAPANESE, DEEPSEEK3)),
        "deepseek-coder": Pre(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", DIGIT)),
        "deepseek-llm": Pre(
            (
                "[\r\n]",
                r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
                r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
                r"\s+$",
                "[一-龥ࠀ-一가-\ud7ff]+",
                r"\p{N}+",
            )
        ),
    }
)


def gguf_tokenizer(file: GgufFile) -> "PreTrainedTokenizerFast":
    """The file's tokenizer, with its special tokens and chat template.

    Raises ``ConfigError`` if the file has none, or one of a kind that isn't known, or that is damaged.
    """
    if "tokenizer.ggml.tokens" not in file.metadata:
        raise ConfigError(f"{file.path} holds no tokenizer; name one with --tokenizer, or use --skip-tokenizer-init.")
    kind = file["tokenizer.ggml.model"]
    if kind not in ("gpt2", "llama"):
        raise ConfigError(
            f"{file.path} has a tokenizer of kind {kind!r}, but only gpt2 and llama are supported; name another with "
            "--tokenizer."
        )
    try:
        return _build(file, kind == "llama")
    except ConfigError:
        raise
    except Exception as error:  # tokenizers raises that
        raise ConfigError(f"The tokenizer in {file.path} is damaged: {error}.") from error


def _build(file: GgufFile, sentence_piece: bool) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    metadata, tokens = file.metadata, file["tokenizer.ggml.tokens"]
    tokenizer, add_bos = _sentence_piece(file, tokens) if sentence_piece else _byte_level(file, tokens)
    tokenizer.add_tokens(_added_tokens(file, tokens))
    special = {"bos": 1, "eos": 2, "unk": 0} if sentence_piece else {}
    for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        if (given := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            special[name] = given
    texts = {name: tokens[i] for name, i in special.items() if i < len(tokens)}
    flags = {
        "bos": metadata.get("tokenizer.ggml.add_bos_token", add_bos),
        "eos": metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    ends = {name: (texts[name], special[name]) for name, on in flags.items() if on and name in texts}
    tokenizer.post_processor = _around(ends.get("bos"), ends.get("eos"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": text for name, text in texts.items()},
    )


def _byte_level(file: GgufFile, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """A tokenizer like GPT-2's, and whether it puts a beginning-of-sequence token first unless told otherwise."""
    name = file.metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        raise ConfigError(
            f"{file.path} needs the pre-tokenizer {name!r}, which isn't known; name the original model's tokenizer "
            "with --tokenizer."
        )
    pre = PRE_TOKENIZERS[name]
    # A merge's parts hold no space of their own: bytes are written as visible letters.
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in file["tokenizer.ggml.merges"])]
    vocabulary = {text: i for i, text in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=pre.ignore_merges))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre.add_bos


def _sentence_piece(file: GgufFile, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """The same for a SentencePiece tokenizer of the BPE kind: pieces join by score, what is no piece becomes bytes.

    The space before the text, where there is one, comes before each stretch between added tokens, as in llama.cpp.
    """
    unknown = tokens[file.metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    kinds = file.metadata.get("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(tokens)
    pieces = [kind in (TokenType.NORMAL, TokenType.USER_DEFINED) for kind in kinds]
    merges = merges_by_score(tokens, file["tokenizer.ggml.scores"], pieces)
    vocabulary = {text: i for i, text in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer, True


def merges_by_score(tokens: Sequence[str], scores: Sequence[float], pieces: Sequence[bool]) -> list[tuple[str, str]]:
    """The pairs of ``pieces`` that together make one, in the order in which SentencePiece would join them."""
    known = {text: i for i, (text, piece) in enumerate(zip(tokens, pieces, strict=True)) if piece}
    merges = [
        (-scores[i], known[text[:cut]], known[text[cut:]])
        for text, i in known.items()
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
    return [(tokens[left], tokens[right]) for _, left, right in sorted(merges)]


def _added_tokens(file: GgufFile, tokens: list[str]) -> list[AddedToken]:
    """The tokens that are found in text as they stand: control tokens, and those that the model's makers added."""
    kinds = file.metadata.get("tokenizer.ggml.token_type", [])
    control = (TokenType.CONTROL, TokenType.UNKNOWN)
    return [
        AddedToken(text, special=kind in control, normalized=False)
        for text, kind in zip(tokens, kinds, strict=False)
        if text and kind in (*control, TokenType.USER_DEFINED)
    ]


def _around(first: tuple[str, int] | None, last: tuple[str, int] | None) -> processors.PostProcessor:
    """What puts a token before and one after each text."""
    ends = {end for end in (first, last) if end}
    if not ends:
        return processors.ByteLevel(trim_offsets=False)
    single = [*([first[0]] if first else []), "$A", *([last[0]] if last else [])]
    return processors.TemplateProcessing(single=single, special_tokens=list(ends))
