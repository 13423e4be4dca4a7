"""llama.cpp as a peer of the benchmarks, through the package llama-cpp-python: greedy answers to prompts of ids.

The model goes there as lmlab's own GGUF export in float32; llama.cpp's converter makes bfloat16, Q8_0 and Q4_0 of it.
Whatever is not said here is llama.cpp's default, so that keys and values are kept in float16. One thread.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.gguf import write_gguf
from lmlab.model.transformer import Transformer

FORMS = {"float32": "ALL_F32", "bfloat16": "MOSTLY_BF16", "int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0"}
"""The form of llama.cpp's that stands beside each of lmlab's precisions."""


def missing() -> str | None:
    """Why there is no such peer here; None where there is."""
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        return "llama.cpp is left out: llama-cpp-python is not installed (pip install llama-cpp-python)"
    return None


class LlamaPeer:
    """One model in one precision."""

    def __init__(self, model: Transformer, precision: str, folder: Path, batch: int, length: int) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self.silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silence, ctypes.c_void_p(0))
        path = folder / "float32.gguf"
        if not path.exists():
            write_gguf(path, model, SpecialTokens(0), None, "float32")
        if precision != "float32":
            source, path = path, folder / f"{precision}.gguf"
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{FORMS[precision]}")
            settings.nthread = 1
            if not path.exists() and llama_cpp.llama_model_quantize(
                str(source).encode(), str(path).encode(), ctypes.byref(settings)
            ):
                raise RuntimeError(f"llama.cpp could not make {path}")
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = batch * length, batch
        settings.n_batch = max(512, batch * length)
        settings.n_threads = settings.n_threads_batch = 1
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.model or not self.context:
            raise RuntimeError(f"llama.cpp could not open {path}")
        self.vocabulary = model.config.vocab_size
        self.batch = llama_cpp.llama_batch_init(batch * length, 0, 1)

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        """`new` greedy tokens after each prompt."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        rows = range(len(prompts))
        said: list[list[int]] = [[] for _ in rows]
        chosen = self._run([(token, at, row) for row in rows for at, token in enumerate(prompts[row])], prompts)
        for step in range(new):
            for row, token in zip(rows, chosen):
                said[row].append(token)
            if step + 1 < new:
                chosen = self._run([(chosen[row], len(prompts[row]) + step, row) for row in rows], None)
        return said

    def _run(self, tokens: list[tuple[int, int, int]], prompts: list[list[int]] | None) -> list[int]:
        """Tokens (id, position, sequence) through the model; the likeliest after the last of each sequence."""
        batch, wanted = self.batch, []
        batch.n_tokens = len(tokens)
        for i, (token, position, row) in enumerate(tokens):
            last = prompts is None or position == len(prompts[row]) - 1
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, last
            batch.seq_id[i][0] = row
            if last:
                wanted.append(i)
        if self.api.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp could not decode")
        shape = (self.vocabulary,)
        return [
            int(np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, i), shape).argmax()) for i in wanted
        ]

    def close(self) -> None:
        """Give its memory back."""
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)
