"""BERT and RoBERTa (and XLM-R, which is RoBERTa with another vocabulary), as encoders and with a classifier.

The embeddings' norm is declared as the first block's, and each block's last norm as the first of the block after it:
so they are blocks of the usual wiring, but that every norm replaces the residual stream.
"""

from transformers import PretrainedConfig

from headrace.errors import ConfigError
from headrace.layers.slots import ClassifierSlot, NormSlot
from headrace.models.declare import attention, decoder, mlp
from headrace.models.names import Rename
from headrace.models.spec import POST_NORM_STREAM, LearnedPositions, Spec


def bert(config: PretrainedConfig, max_positions: int) -> Spec:
    return _encoder(config, max_positions, 0, Rename(r"^pooler\.", None))


def bert_classifier(config: PretrainedConfig, max_positions: int) -> Spec:
    names = Rename(r"^classifier\.", "classifier.out."), Rename(r"^pooler\.dense\.", "classifier.dense.")
    return _encoder(config, max_positions, 0, *names, classifier=ClassifierSlot(len(config.id2label or ()), dense=True))


def roberta(config: PretrainedConfig, max_positions: int) -> Spec:
    return _encoder(config, max_positions, config.pad_token_id + 1, Rename(r"^pooler\.", None))


def roberta_classifier(config: PretrainedConfig, max_positions: int) -> Spec:
    names = Rename(r"^classifier\.out_proj\.", "classifier.out.")
    slot = ClassifierSlot(len(config.id2label or ()), dense=True)
    return _encoder(config, max_positions, config.pad_token_id + 1, names, classifier=slot)


def _encoder(
    config: PretrainedConfig,
    max_positions: int,
    first_position: int,
    *renames: Rename,
    classifier: ClassifierSlot | None = None,
) -> Spec:
    """``first_position``: the row of the position embeddings that a prompt's first token takes."""
    if config.is_decoder or getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ConfigError("Only encoders with absolute positions are supported of this architecture.")
    norms = ["norm.", *(f"layers.{number}.attention_norm." for number in range(config.num_hidden_layers - 1, 0, -1))]
    return decoder(
        config,
        max_positions,
        attention(config, max_positions, rope=None, bias=True, causal=False),
        mlp(config, gated=False, bias=True),
        NormSlot("layer", config.layer_norm_eps, bias=True),
        wiring=POST_NORM_STREAM,
        head=False,
        classifier=classifier,
        learned_positions=LearnedPositions(config.max_position_embeddings, first_position),
        num_token_types=config.type_vocab_size,
        renames=(
            Rename(r"^(bert|roberta)\.", ""),
            *renames,
            Rename(r"^(cls|lm_head)\.|\.position_ids$", None),
            Rename(r"^embeddings\.word_embeddings\.", "embedding."),
            Rename(r"^embeddings\.position_embeddings\.", "positions."),
            Rename(r"^embeddings\.token_type_embeddings\.", "token_types."),
            Rename(r"^embeddings\.LayerNorm\.", "layers.0.attention_norm."),
            Rename(r"^encoder\.layer\.", "layers."),
            Rename(r"\.attention\.self\.(q|k|v)(?:uery|ey|alue)\.", r".attention.\1."),
            Rename(r"\.attention\.output\.dense\.", ".attention.o."),
            Rename(r"\.attention\.output\.LayerNorm\.", ".mlp_norm."),
            Rename(r"\.intermediate\.dense\.", ".mlp.up."),
            *(
                Rename(rf"^layers\.{number}\.output\.LayerNorm\.", name)
                for number, name in zip(range(config.num_hidden_layers - 1, -1, -1), norms, strict=True)
            ),
            Rename(r"\.output\.dense\.", ".mlp.down."),
        ),
    )
