"""Matrices packed in panels for simd.py's kernel, and the product of rows with them.

A panel holds 48 outputs: for each step along the inputs the weights of all 48 lie side by side, so that a product reads
memory from front to back once, whatever number of rows it multiplies. Rows of x stay float32 beside float32 weights and
are rounded to bfloat16 beside bfloat16 ones where the processor multiplies those in pairs. Beside int8 and int4 they are
rounded to 16 bits with a scale for each row and block of inputs (a rounding of at most 2^-16 of the block's largest
number), so that in effect weights alone are quantised, while sums are of integers and exact.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.generate.kernels import LINE, _compiled, spread
from lmlab.generate.mapped import give_back
from lmlab.generate.quantise import group_size, round_int4, round_int8
from lmlab.generate.simd import (
    BFLOAT16,
    FLOAT32,
    INT4,
    INT8,
    PANEL,
    ROWS,
    WHOLE,
    add_products,
    available,
    fetch_near,
    kept,
)

BLOCK = 256
"""Inputs that share a scale of x beside int8 weights. 512 x 127 x 32,767 is the most that 32 bits hold; fewer, because
an outlier among the inputs coarsens its block."""

NEAR = 1 << 18
"""Bytes of x that are multiplied by all panels before the next rows are."""

PARALLEL_BYTES = 1 << 20
"""Bytes of weights (times tiles of rows) from which a product is worth spreading over threads (guessed)."""

TOGETHER = 1 << 19
"""Numbers that are laid out at once: 2 MiB of float32, so that what stands between fits a processor's second cache or
nearly so."""

_TOP = np.float32(32767)

Packed = tuple[int, int, int, int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""(kind, outputs, inputs of a block, blocks, weights uint8, scale of each output, bias, (scale, lowest) of int4's groups):
what the compiled functions take."""


@_compiled
def narrow(
    kind: int, size: int, x: np.ndarray, words: np.ndarray, scale: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """Rows x (N, K) as the kernel reads them: words (N, >= K / 2 or K) int32, zeroed behind K; scale (N, blocks, 2)."""
    N, K = x.shape
    bits = x.view(np.int32)
    if kind in WHOLE:
        for n in range(N):
            for k in range(K):
                words[n, k] = bits[n, k]
    elif kind == BFLOAT16:
        halves = words.view(np.int16)
        for n in range(N):
            for k in range(K):
                halves[n, k] = kept(x[n, k], halves)
    else:
        codes = words.view(np.int16)
        largest = np.zeros(1, np.int32)
        as_float = largest.view(np.float32)
        for n in range(N):
            for block in range(scale.shape[1]):
                a, e = block * size, min(K, block * size + size)
                here, here_bits, there = x[n, a:e], bits[n, a:e], codes[n, a:e]  # counted from 0, loops become SIMD
                fault, size_bits = np.float32(0), np.int32(0)
                for k in range(e - a):
                    # Sizes of numbers are in the order of their bits, and integers are compared 16 at a time.
                    size_bits = max(size_bits, here_bits[k] & np.int32(0x7FFFFFFF))
                    fault += here[k] * np.float32(0)  # NaN where a number of x is NaN or infinite
                largest[0] = size_bits
                top = max(as_float[0], np.float32(1e-30))
                total, back = np.int32(0), _TOP / top
                for k in range(e - a):
                    code = np.int32(np.rint(here[k] * back))
                    there[k] = np.int16(code)
                    total += code
                scale[n, block, 0] = top / _TOP + fault
                scale[n, block, 1] = np.float32(total) * scale[n, block, 0]


@_compiled
def _settle(
    tile: np.ndarray, scale: np.ndarray, bias: np.ndarray, add: bool, out: np.ndarray
) -> None:  # pragma: no cover (compiled)
    """A row of a panel to where it belongs."""
    if add:
        for o in range(len(out)):
            out[o] += tile[o] * scale[o] + bias[o]
    else:
        for o in range(len(out)):
            out[o] = tile[o] * scale[o] + bias[o]


@_compiled
def multiply(
    packed: Packed,
    words: np.ndarray,
    scale: np.ndarray,
    add: bool,
    first: int,
    last: int,
    out: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    """out (N, outputs) = x W^T + b of the panels `first` to `last`; added to what is there where `add`."""
    kind, outputs, size, blocks, w, w_scale, bias, pairs = packed
    N = len(words)
    # Bytes of a step are 2 or 4 for each output; steps of a block are 4 bytes of x, or 16 (int4).
    per = size if kind == FLOAT32 else size // 8 if kind == INT4 else size // 2
    step = PANEL * (2 if kind == INT8 else 4)
    advance = per * (4 if kind == INT4 else 1)
    panel_bytes = per * step * blocks
    tile = np.empty((ROWS, PANEL), np.float32)
    # So many rows of x that they stay in the processor's second cache while all panels pass by.
    together = max(NEAR // (4 * words.shape[1]) // ROWS, 6) * ROWS
    for begin in range(0, N, together):
        rows = min(together, N - begin)
        tiles = (rows + ROWS - 1) // ROWS
        for panel in range(first, last):
            width = min(PANEL, outputs - panel * PANEL)
            scale_here = w_scale[panel * PANEL : (panel + 1) * PANEL]
            bias_here = bias[panel * PANEL : (panel + 1) * PANEL]
            for t in range(tiles):
                a, e = begin + rows * t // tiles, begin + rows * (t + 1) // tiles
                if panel + 1 < last and tiles > 1:
                    # The next panel comes nearer meanwhile: 190 to 215 GFLOP/s (128 rows, 768 by 2,304, bfloat16; measured).
                    for line in range(panel_bytes * t // tiles, panel_bytes * (t + 1) // tiles, LINE):
                        fetch_near(w, (panel + 1) * panel_bytes + line)
                for block in range(blocks):
                    at = panel * panel_bytes + block * per * step
                    pair = (panel * blocks + block) * 2 * PANEL
                    place = (a, block * advance)
                    add_products(kind, e - a, words, place, w, at, per, scale, block, pairs, pair, tile)
                for n in range(a, e):
                    _settle(tile[n - a], scale_here, bias_here, add, out[n, panel * PANEL : panel * PANEL + width])


@_compiled
def product(packed: Packed, x: np.ndarray, add: bool, out: np.ndarray) -> None:  # pragma: no cover (compiled)
    """out (N, outputs) = x W^T + b, added to what is there where `add`; x (N, in) float32, contiguous."""
    kind, outputs, size, blocks = packed[0], packed[1], packed[2], packed[3]
    words = np.zeros((len(x), size * blocks // (1 if kind in WHOLE else 2)), np.int32)
    scale = np.empty((len(x), blocks if kind >= INT8 else 0, 2), np.float32)
    narrow(kind, size, x, words, scale)
    multiply(packed, words, scale, add, 0, (outputs + PANEL - 1) // PANEL, out)


CHUNK = 64 << 20
"""Bytes of memory asked for at once. The system backs large pieces with huge pages, and reading weights of a few MB each
from their own pieces was a third slower (bfloat16, 1 row: 18 to 20 GB/s of 29; measured)."""


class _Memory:
    """Hands out pieces of a chunk, each beginning at a multiple of 64. A chunk lives as long as any of its pieces."""

    def __init__(self) -> None:
        self.chunk, self.used = np.empty(0, np.uint8), 0

    def take(self, size: int) -> np.ndarray:
        if size > CHUNK // 4:
            raw = np.empty(size + 64, np.uint8)
            return raw[-raw.ctypes.data % 64 :][:size]
        if self.used + size > len(self.chunk):
            self.chunk = np.empty(CHUNK, np.uint8)
            self.used = -self.chunk.ctypes.data % 64
        piece = self.chunk[self.used : self.used + size]
        self.used += -(-size // 64) * 64
        return piece


_memory = _Memory()


def _paneled(weight: Tensor, together: int) -> Tensor:
    """Rows (O, K) -> (panels, K / together, 48, together)."""
    return weight.view(len(weight) // PANEL, PANEL, -1, together).transpose(1, 2)


def kind_of(precision: str, inputs: int) -> int | None:
    """The kernel's kind for a matrix of a precision; None where this processor has no kernel for it."""
    wanted = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8, "int4": INT4 if group_size(inputs) else INT8}
    return wanted[precision] if wanted[precision] in available() else None


class Panels:
    """A matrix (out, in) in panels. Calling it multiplies rows (N, in) -> (N, out), float32 in and out."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: int, gain: Tensor | None = None) -> None:
        """`gain` (in,) is multiplied into the columns. Rows are laid out a few panels at a time, and their pages of a
        weight file given back: beside the panels there is never a second copy of the matrix."""
        self.outputs, self.inputs = weight.shape
        self.kind = kind
        self.panels = -(-self.outputs // PANEL)
        self.blocks, self.block = 1, self.inputs
        if kind == BFLOAT16:
            self.block += self.inputs % 2
        elif kind == INT8:
            self.blocks = -(-self.inputs // BLOCK)
            # Blocks are equally long: the kernel's steps are the same for all.
            self.block = -(-self.inputs // (2 * self.blocks)) * 2
        elif kind == INT4:
            self.block = group_size(self.inputs)
            self.blocks = self.inputs // self.block
        bits = {FLOAT32: 32, BFLOAT16: 16, INT8: 8, INT4: 4}[kind]
        self.weights = _memory.take(self.panels * PANEL * self.block * self.blocks * bits // 8)
        laid = torch.from_numpy(self.weights).view(self.panels, -1)
        # What stays is made before what comes and goes: pieces of both in turn would leave C's heap in holes.
        scale, offset = torch.ones(self.panels * PANEL), torch.zeros(self.panels * PANEL)
        pairs = torch.empty(
            (self.panels, self.blocks * 2 * PANEL) if kind == INT4 else (self.panels, 0), dtype=torch.int16
        )
        step = max(1, TOGETHER // self.inputs // PANEL)
        for panel in range(0, self.panels, step):
            here = slice(panel, panel + step)
            part = weight[panel * PANEL : (panel + step) * PANEL].detach()
            self._lay(part, gain, laid[here], scale.view(-1, PANEL)[here], pairs[here])
            give_back(part)
        if bias is not None:
            offset[: self.outputs] = bias.detach().float()
        arrays = (scale.numpy(), offset.numpy(), pairs.view(-1).numpy())
        self.packed: Packed = (kind, self.outputs, self.block, self.blocks, self.weights, *arrays)

    def _lay(self, weight: Tensor, gain: Tensor | None, out: Tensor, scale: Tensor, pairs: Tensor) -> None:
        """Rows into their panels, `out` (panels, bytes), with the scale of each output (panels, 48) and int4's pairs."""
        if self.kind == FLOAT32:
            whole = len(weight) // PANEL
            laid = out.view(torch.float32).view(len(out), self.inputs, PANEL)
            laid[:whole] = weight[: whole * PANEL].reshape(whole, PANEL, self.inputs).transpose(1, 2)
            for rest in laid[whole:]:
                rest.zero_()[:, : len(weight) - whole * PANEL] = weight[whole * PANEL :].T
            if gain is not None:
                laid *= gain[:, None]
            return
        weight = F.pad(weight.float() if gain is None else weight.float() * gain, (0, 0, 0, -len(weight) % PANEL))
        padding = (0, self.blocks * self.block - self.inputs)
        if self.kind == BFLOAT16:
            found = _paneled(F.pad(weight.bfloat16(), padding), 2)
        elif self.kind == INT8:
            codes, scale_O = round_int8(weight)
            scale.view(-1)[:] = scale_O
            found = _paneled(F.pad(codes, padding), 2)
        else:
            codes, step, low = round_int4(weight, self.block)
            both = torch.stack((step, low)).view(2, -1, PANEL, self.blocks).permute(1, 3, 0, 2)
            pairs[:] = both.reshape(len(out), -1).bfloat16().view(torch.int16)
            eight = codes.view(len(out), PANEL, -1, 8).int()
            places = torch.tensor([4 * (i // 2) + 16 * (i % 2) for i in range(8)], dtype=torch.int32)
            found = (eight << places).sum(-1, dtype=torch.int32).transpose(1, 2)
        out[:] = found.reshape(len(out), -1).view(torch.uint8)

    @property
    def bytes(self) -> int:
        """Memory that a product reads."""
        return self.weights.nbytes + sum(each.nbytes for each in self.packed[5:])

    def __call__(self, x_ND: Tensor, residual: Tensor | None = None) -> Tensor:
        """x W^T + b, or that added to the residual (N, out), in place."""
        x = x_ND.detach().contiguous().numpy()
        found = torch.empty((len(x), self.outputs)) if residual is None else residual
        out, add = found.numpy(), residual is not None
        count = min(torch.get_num_threads(), self.panels)
        if count == 1 or self.weights.nbytes * -(-len(x) // ROWS) < PARALLEL_BYTES:
            product(self.packed, x, add, out)
            return found
        width, integers = self.block * self.blocks // (1 if self.kind in WHOLE else 2), self.kind in (INT8, INT4)
        ready = self.kind in WHOLE and width == self.inputs  # float32 that is not padded
        words = x.view(np.int32) if ready else np.zeros((len(x), width), np.int32)
        scale = np.empty((len(x), self.blocks if integers else 0, 2), np.float32)
        if not ready:
            narrow(self.kind, self.block, x, words, scale)
        spread(self.panels, lambda part: multiply(self.packed, words, scale, add, part.start, part.stop, out))
        return found
