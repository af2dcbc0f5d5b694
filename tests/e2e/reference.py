"""The default model in transformers, with the same dequantized weights, on the device that Headrace takes."""

import torch
from transformers import LlamaForCausalLM

from headrace.config import Config
from headrace.device import pick_device
from headrace.models import source
from headrace.models.loader import load

DEVICE = pick_device("auto")
NEAR_TIE = 1e-3  # logits closer than this may change places: sums in another order differ by as much


class Reference:
    """Loaded by the loader itself, to which it looks like a decoder."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        config = Config()
        files = source.resolve(config.model, config.load)
        hf_config = source.load_config(files)
        self._model = LlamaForCausalLM(hf_config).to(DEVICE, dtype).eval()
        self._missing = dict(self._model.named_parameters())
        self._read: dict[tuple[int, ...], tuple[list[int], torch.Tensor]] = {}  # by prompt: tokens and their gaps
        load(self, files)

    def accepts(self, checkpoint_name: str) -> bool:
        return False  # nothing but plain values

    def load_weight(self, checkpoint_name: str, tensor: torch.Tensor) -> None:
        with torch.no_grad():
            self._missing.pop(checkpoint_name).copy_(tensor)

    def finish_loading(self) -> None:
        assert not self._missing

    def init_dummy(self, seed: int) -> None:
        raise NotImplementedError

    @torch.inference_mode()
    def logits(self, prompt: list[int], tokens: list[int]) -> torch.Tensor:
        """float32 [tokens, vocab], on the CPU: what each of ``tokens``, which follow ``prompt``, was chosen from."""
        ids = torch.tensor([prompt + tokens[:-1]], device=DEVICE)
        logits: torch.Tensor = self._model(ids, logits_to_keep=len(tokens)).logits[0]
        return logits.float().cpu()

    def gaps(self, prompt: list[int], tokens: list[int]) -> torch.Tensor:
        """float32 [tokens]: by how much each of ``tokens`` misses the largest logit; 0 where it is the argmax.

        What begins as the last text after ``prompt`` is not read again: one gap depends on no later token.
        """
        known, found = self._read.get(tuple(prompt), ([], torch.zeros(0)))
        if known[: len(tokens)] != tokens:
            logits = self.logits(prompt, tokens)
            found = logits.max(dim=-1).values - logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            self._read[tuple(prompt)] = tokens, found
        return found[: len(tokens)]
