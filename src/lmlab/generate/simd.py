"""The innermost loop of a matrix product, written in LLVM's own language, for processors with AVX-512.

    tile[r, o] += sum over k of x[r, k] w[k, o]        for up to 8 rows r and the 48 outputs o of a panel

It is the micro-kernel of GotoBLAS (Goto and van de Geijn 2008, doi 10.1145/1356052.1356053): all 24 sums stay in
registers, a panel's weights are read once, in the order in which they lie, and each number of x is spread over a
vector. numba compiles it into the loops that call it (products.py, step.py); no C++ compiler is needed. Each output is
a lane of its own, so its sum has one order, whatever rows are computed beside it: what the engine's exactness stands on.

A step of the loop takes 4 bytes of each row of x: one float32, two bfloat16 (vdpbf16ps), or two int16 (vpdpwssd), which
int8 and int4 weights are widened to. Integers are summed exactly over a block and then scaled; float32 sums take them up.
Where vdpbf16ps is missing or slow (PAIRED), bfloat16 weights are widened to float32 in registers, and x stays float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES, VECTORS, ROWS = 16, 3, 8
"""float32 numbers a vector, vectors a panel, rows a tile: 24 sums, 3 vectors of weights and one of x in 32 registers.
Eight rows, because batches of 8 and 32 are then whole tiles; 4 vectors and 6 rows are as fast else (measured)."""

PANEL = LANES * VECTORS
"""Outputs that are computed together."""

FEW, AHEAD = 4, 4096
"""At most so many rows wait for memory, not for sums: weights are asked for so many bytes before they are needed (1 row of
bfloat16 on a machine whose other core was busy: 18 GB/s without, 26 with; measured)."""

NEAREST, NEAR = 3, 2
"""LLVM's numbers for the first and the second cache."""

FLOAT32, BFLOAT16, INT8, INT4 = range(4)

_F32, _I8, _I16, _I32, _I64 = ir.FloatType(), *(ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOATS, _INTS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


@dataclass(frozen=True)
class Kind:
    """How weights of one precision lie in memory. A step is `step_bytes` of weights for each of the panel's outputs
    and `words` times 4 bytes of each row of x."""

    feature: str
    """The processor's feature that it needs."""
    step_bytes: int
    words: int
    sums: Any


def _paired() -> bool:
    features = binding.get_host_cpu_features()
    return bool(features.get("avx512bf16")) and binding.get_host_cpu_name().startswith("znver")


PAIRED = _paired()
"""Whether bfloat16 is multiplied in pairs, at twice float32's rate: on AMD's processors. On Intel's vdpbf16ps has half of it
(Emerald Rapids: products of torch reach 162 GFLOP/s in float32, 83 in bfloat16; measured)."""

WHOLE = (FLOAT32,) if PAIRED else (FLOAT32, BFLOAT16)
"""The kinds beside which rows of x are float32."""

KINDS = {
    FLOAT32: Kind("avx512f", 4, 1, _FLOATS),
    BFLOAT16: Kind("avx512bf16", 4, 1, _FLOATS) if PAIRED else Kind("avx512f", 4, 2, _FLOATS),
    INT8: Kind("avx512vnni", 2, 1, _INTS),
    INT4: Kind("avx512vnni", 4, 4, _INTS),
}


@lru_cache(maxsize=1)
def available() -> frozenset[int]:
    """The kinds that this processor can multiply. Without 512-bit vectors none: oneDNN serves (weights.py)."""
    features = binding.get_host_cpu_features()
    if not (features.get("avx512f") and features.get("avx512bw")):
        return frozenset()
    binding.initialize_native_asmparser()
    return frozenset(kind for kind, how in KINDS.items() if features.get(how.feature))


_operation: Any = intrinsic
"""What compiled code calls as a function; numba gives the types, so none are checked here."""


def _whole(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _load(b: ir.IRBuilder, address: ir.Value, kind: ir.Type, align: int) -> ir.Value:
    return b.load(b.inttoptr(address, kind.as_pointer()), align=align)


def _spread(b: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    """A vector whose lanes all are `value`."""
    nothing = ir.Constant(kind, ir.Undefined)
    first = b.insert_element(nothing, value, ir.Constant(_I32, 0))
    return b.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def _filled(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [value] * LANES)


def _fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.fma.v{LANES}f32"), [x, y, z])


def _instruction(name: str) -> Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]:
    """sums + the dot product of the pairs in each lane. As an instruction's name, because the intrinsic functions of
    LLVM for these two have changed their types from version to version."""

    def apply(b: ir.IRBuilder, sums: Any, w: ir.Value, x: ir.Value) -> Any:
        kind = ir.FunctionType(sums.type, [sums.type, _INTS, _INTS])
        return b.call(ir.InlineAsm(kind, f"{name} $3, $2, $0", "=v,0,v,v"), [sums, w, x])

    return apply


_PAIRS = {BFLOAT16: _instruction("vdpbf16ps"), INT8: _instruction("vpdpwssd"), INT4: _instruction("vpdpwssd")}


def _weights(b: ir.IRBuilder, kind: int, address: ir.Value, word: int) -> list[ir.Value]:
    """The weights that a step's word of x is multiplied by, one vector after another."""
    size = KINDS[kind].step_bytes * LANES
    places = [b.add(address, _whole(vector * size)) for vector in range(VECTORS)]
    if kind == FLOAT32:
        return [_load(b, place, _FLOATS, 64) for place in places]
    if kind == BFLOAT16:
        pairs = [_load(b, place, _INTS, 64) for place in places]
        if PAIRED:
            return pairs
        first = word == 0  # of the two inputs that lie in 32 bits, the first in the lower half
        widened = (b.shl(each, _filled(16)) if first else b.and_(each, _filled(-1 << 16)) for each in pairs)
        return [b.bitcast(each, _FLOATS) for each in widened]
    if kind == INT8:
        narrow, wide = (ir.VectorType(each, 2 * LANES) for each in (_I8, _I16))
        return [b.bitcast(b.sext(_load(b, place, narrow, 32), wide), _INTS) for place in places]
    # Eight codes in 32 bits; those of inputs 2 j and 2 j + 1 stand at bits 4 j and 4 j + 16.
    codes = [_load(b, place, _INTS, 64) for place in places]
    return [b.and_(b.lshr(each, _filled(4 * word)), _filled(0x000F000F)) for each in codes]


def _settle(b: ir.IRBuilder, kind: int, found: list[list[ir.Value]], at: dict[str, ir.Value]) -> None:
    """Add a block's sums to the tile, scaled."""
    scales: list[list[ir.Value]] = []
    if kind == INT4:  # (scale, lowest) of the group for each output, bfloat16
        for vector in range(2 * VECTORS):
            half = _load(b, b.add(at["pairs"], _whole(vector * LANES * 2)), ir.VectorType(_I16, LANES), 2)
            scales.append([b.bitcast(b.shl(b.zext(half, _INTS), _filled(16)), _FLOATS)])
    for row, sums in enumerate(found):
        address = b.add(at["x_scale"], b.mul(at["x_scale_stride"], _whole(row)))
        step = total = ir.Constant(_FLOATS, ir.Undefined)
        if kind in (INT8, INT4):
            step = _spread(b, _load(b, address, _F32, 4), _FLOATS)
            total = _spread(b, _load(b, b.add(address, _whole(4)), _F32, 4), _FLOATS)
        for vector, each in enumerate(sums):
            place = b.add(at["tile"], _whole((row * VECTORS + vector) * LANES * 4))
            if kind not in (INT8, INT4):
                b.store(each, b.inttoptr(place, _FLOATS.as_pointer()), align=4)
                continue
            so_far = b.select(at["fresh"], ir.Constant(_FLOATS, [0.0] * LANES), _load(b, place, _FLOATS, 4))
            if kind == INT8:
                so_far = _fma(b, b.sitofp(each, _FLOATS), step, so_far)
            else:
                so_far = _fma(b, b.fmul(b.sitofp(each, _FLOATS), step), scales[vector][0], so_far)
                so_far = _fma(b, total, scales[VECTORS + vector][0], so_far)
            b.store(so_far, b.inttoptr(place, _FLOATS.as_pointer()), align=4)


def _loop(b: ir.IRBuilder, kind: int, rows: int, at: dict[str, ir.Value]) -> None:
    """The product of one kind and number of rows."""
    how = KINDS[kind]
    size = how.step_bytes * PANEL
    zero = ir.Constant(how.sums, [0 if how.sums is _INTS else 0.0] * LANES)
    before, loop, after = b.block, b.append_basic_block("steps"), b.append_basic_block("settled")
    b.branch(loop)
    b.position_at_end(loop)
    step = b.phi(_I64)
    step.add_incoming(_whole(0), before)
    sums = [[b.phi(how.sums) for _ in range(VECTORS)] for _ in range(rows)]
    there = b.mul(step, _whole(size))
    for line in range(-(-size // 64) if rows <= FEW else 0):
        _fetch(b, b.add(b.add(at["w"], there), _whole(AHEAD + 64 * line)), NEAREST)
    x = b.add(at["x"], b.mul(step, _whole(4 * how.words)))
    found: list[list[ir.Value]] = [list(each) for each in sums]
    for word in range(how.words):
        weights = _weights(b, kind, b.add(at["w"], there), word)
        for row in range(rows):
            place = b.add(b.add(x, b.mul(at["x_stride"], _whole(row))), _whole(4 * word))
            if kind in WHOLE:
                spread = _spread(b, _load(b, place, _F32, 4), _FLOATS)
                found[row] = [_fma(b, spread, w, each) for each, w in zip(found[row], weights)]
            else:
                spread = _spread(b, _load(b, place, _I32, 4), _INTS)
                found[row] = [_PAIRS[kind](b, each, w, spread) for each, w in zip(found[row], weights)]
    following = b.add(step, _whole(1))
    step.add_incoming(following, loop)
    for phis, here in zip(sums, found):
        for phi, each in zip(phis, here):
            phi.add_incoming(zero, before)
            phi.add_incoming(each, loop)
    b.cbranch(b.icmp_signed("<", following, at["steps"]), loop, after)
    b.position_at_end(after)
    _settle(b, kind, found, at)


def _fetch(b: ir.IRBuilder, address: ir.Value, into: int) -> None:
    """Ask for a line of memory to be read soon, into the processor's first cache (NEAREST) or its second (NEAR)."""
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    read_soon = [ir.Constant(_I32, each) for each in (0, into, 1)]
    place = b.inttoptr(address, _I8.as_pointer())
    b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0"), [place, *read_soon])


def _fetching(into: int) -> Callable[[Any, Any, Any], Any]:
    def fetching(typing: Any, array: Any, at: Any) -> Any:
        """Ask for the memory of an array's element `at`, counted from its first in memory, to be read into the processor's
        cache meanwhile; nothing happens where there is none."""

        def generate(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
            made = context.make_array(signature.args[0])(context, b, args[0])
            _fetch(b, b.add(b.ptrtoint(made.data, _I64), b.mul(args[1], made.itemsize)), into)
            return context.get_dummy_value()

        return types.void(array, types.intp), generate

    return fetching


fetch, fetch_near = _operation(_fetching(NEAREST)), _operation(_fetching(NEAR))
"""Into the first cache, for what comes next; into the second, for what comes after that."""


@_operation
def read(typing: Any, number: Any) -> Any:
    """A float32 as it is; an int16 as the bfloat16 whose bits it is, widened to float32."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        if number == types.float32:
            return args[0]
        return b.bitcast(b.shl(b.zext(args[0], _I32), ir.Constant(_I32, 16)), _F32)

    return types.float32(number), generate


@_operation
def kept(typing: Any, number: Any, like: Any) -> Any:
    """A float32 as an array of the kind of `like` holds it: as it is, or the bits of the nearest bfloat16."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        if like.dtype == types.float32:
            return args[0]
        bits = b.bitcast(args[0], _I32)
        odd = b.and_(b.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
        rounded = b.lshr(b.add(bits, b.add(odd, ir.Constant(_I32, 0x7FFF))), ir.Constant(_I32, 16))
        # What is no number stays none: rounding could carry its mantissa over.
        strange = b.fcmp_unordered("uno", args[0], args[0])
        return b.trunc(b.select(strange, ir.Constant(_I32, 0x7FC0), rounded), _I16)

    return like.dtype(number, like), generate


@_operation
def add_products(
    typing: Any,
    kind: Any,
    rows: Any,
    x: Any,
    x_at: Any,
    w: Any,
    w_at: Any,
    steps: Any,
    x_scale: Any,
    block: Any,
    pairs: Any,
    pairs_at: Any,
    tile: Any,
) -> Any:
    """tile (8, 48) += x w of `rows` rows and one panel, in compiled code.

    x (N, words) int32, whatever 4 bytes mean; `x_at` (row, word) to begin at. w (bytes,) uint8, 64-byte aligned;
    `w_at` where the panel's block begins, in bytes. x_scale (N, blocks, 2) float32, (scale, scale x sum of codes) of a
    row's `block`; pairs (...,) int16, of which `pairs_at` is the block's first.
    """
    whole = types.intp
    signature = types.void(
        whole, whole, x, types.UniTuple(whole, 2), w, whole, whole, x_scale, whole, pairs, whole, tile
    )

    def generate(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        def array(index: int) -> Any:
            return context.make_array(signature.args[index])(context, b, args[index])

        def address(made: Any) -> ir.Value:
            return b.ptrtoint(made.data, _I64)

        x_made, scale_made = array(2), array(7)
        row, word = (b.extract_value(args[3], each) for each in (0, 1))
        x_stride, scale_stride = (b.extract_value(each.strides, 0) for each in (x_made, scale_made))
        at = {
            "x": b.add(address(x_made), b.add(b.mul(row, x_stride), b.mul(word, _whole(4)))),
            "x_stride": x_stride,
            "w": b.add(address(array(4)), args[5]),
            "steps": args[6],
            "x_scale": b.add(address(scale_made), b.add(b.mul(row, scale_stride), b.mul(args[8], _whole(8)))),
            "x_scale_stride": scale_stride,
            "fresh": b.icmp_signed("==", args[8], _whole(0)),
            "pairs": b.add(address(array(9)), b.mul(args[10], _whole(2))),
            "tile": address(array(11)),
        }
        end = b.append_basic_block("end")
        choice = b.add(b.mul(args[0], _whole(ROWS + 1)), args[1])
        switch = b.switch(choice, end)
        for each in sorted(available()):
            for count in range(1, ROWS + 1):
                block = b.append_basic_block(f"kind_{each}_rows_{count}")
                switch.add_case(_whole(each * (ROWS + 1) + count), block)
                b.position_at_end(block)
                _loop(b, each, count, at)
                b.branch(end)
        b.position_at_end(end)
        return context.get_dummy_value()

    return signature, generate
