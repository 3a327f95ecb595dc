"""What compiled kernels need of the machine and Numba's own language has not: bits, and whole blocks."""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

inlined: Any = numba.njit(forceinline=True, error_model="numpy")
part: Any = numba.njit(nogil=True, error_model="numpy")
"""For a part of a loop that is compiled and kept."""
summing: Any = numba.njit(nogil=True, fastmath={"reassoc", "contract"})
"""For sums, whose terms may be added in any order, and products not be rounded before."""
_intrinsic: Any = intrinsic
_copy_bytes: Any = cgutils.raw_memcpy
_populate: Any = populate_array
_pair: Any = types.UniTuple


@_intrinsic
def as_float(typing: Any, bits: Any) -> Any:
    """Read bits as a float of the same width."""
    to = types.float32 if bits == types.uint32 else types.float64

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(to))

    return to(bits), code


@_intrinsic
def as_bits(typing: Any, x: Any) -> Any:
    """Read a float's bits as an unsigned integer."""
    to = types.uint32 if x == types.float32 else types.uint64

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(to))

    return to(x), code


@_intrinsic
def like(typing: Any, value: Any, other: Any) -> Any:
    """Convert a number to the type of another: integer arithmetic makes all integers 64 bits wide."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[0], value, other)

    return other(value, other), code


@_intrinsic
def copy(typing: Any, source: Any, target: Any, start: Any, size: Any) -> Any:
    """Copy so many elements of a flat array to a place in another."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = [
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(signature.args[:2], arguments[:2], strict=True)
        ]
        place = builder.gep(data[1], [arguments[2]])
        _copy_bytes(builder, place, data[0], arguments[3], source.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(source, target, types.intp, types.intp), code


@_intrinsic
def piece(typing: Any, array: Any, start: Any, size: Any) -> Any:
    """Return so many elements of a flat array from a place on, which must not outlive it.

    A slice, of which Numba counts that there is one more, and one less: tens of nanoseconds.
    """
    found = types.Array(array.dtype, 1, "C")

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = context.make_array(array)(context, builder, arguments[0])
        view, item = context.make_array(found)(context, builder), whole.itemsize
        place = builder.gep(whole.data, [arguments[1]])
        _populate(view, place, [arguments[2]], [item], item, meminfo=None)
        return view._getvalue()

    return found(array, types.intp, types.intp), code


@_intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Multiply and add, and round once."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, a, a), code


@_intrinsic
def in_wide_vectors(typing: Any) -> Any:
    """Let vectors of the function that this is called in be of 512 bits, where there are such."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite lists the attributes that it knows; LLVM knows more, and takes any text.
        attributes = builder.function.attributes
        if isinstance(attributes, set):
            set.add(attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), code


LANES = 16
"""Elements that `spread` takes at once."""
PLANE = 64
"""Elements whose bits `set_planes` puts side by side: as many as a word has bits."""


def _lanes(
    context: Any, builder: Any, array: Any, kind: Any, start: Any, count: int = LANES
) -> tuple[Any, Any]:
    """Return the type of so many elements together, and a pointer to those at a place."""
    vector = ir.VectorType(context.get_value_type(kind.dtype), count)
    place = builder.gep(context.make_array(kind)(context, builder, array).data, [start])
    return vector, builder.bitcast(place, vector.as_pointer())


def _all(builder: Any, vector: Any, value: Any) -> Any:
    """Return a vector of equal elements."""
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    empty = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, zeros)


@_intrinsic
def spread(typing: Any, array: Any, start: Any, value: Any) -> Any:
    """Write a number to `LANES` elements of an array."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, place = _lanes(context, builder, arguments[0], array, arguments[1])
        stored = builder.store(_all(builder, vector, arguments[2]), place)
        stored.align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.none(array, types.intp, array.dtype), code


@_intrinsic
def set_planes(typing: Any, bits: Any, start: Any, base: Any, planes: Any, column: Any) -> Any:
    """Put the bits of `PLANE` exponent fields side by side: word k of a column has bit k of each.

    Of what is left of a field after `base` is taken away, as a number of 8 bits; 255 stands for all
    that has not so many.  The floats are given as their bits, `base` as a number like those.
    """
    word = bits.dtype
    shift, field = (23, 0xFF) if word.bitwidth == 32 else (52, 0x7FF)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, place = _lanes(context, builder, arguments[0], bits, arguments[1], PLANE)
        loaded = builder.load(place)
        loaded.align = word.bitwidth // 8

        def all_equal(number: int, kind: Any = vector) -> Any:
            return ir.Constant(kind, [number] * PLANE)

        fields = builder.and_(builder.lshr(loaded, all_equal(shift)), all_equal(field))
        left = builder.sub(fields, _all(builder, vector, arguments[2]))
        over = builder.icmp_unsigned(">", left, all_equal(255))
        small = ir.VectorType(ir.IntType(8), PLANE)
        left = builder.trunc(builder.select(over, all_equal(255), left), small)
        target = context.make_array(planes)(context, builder, arguments[3])
        rows = builder.extract_value(target.shape, 1)
        for k in range(8):
            bit = builder.and_(left, all_equal(1 << k, small))
            plane = builder.bitcast(builder.icmp_signed("!=", bit, all_equal(0, small)), rows.type)
            at = builder.add(builder.mul(rows, ir.Constant(rows.type, k)), arguments[4])
            builder.store(plane, builder.gep(target.data, [at]))
        return context.get_dummy_value()

    return types.none(bits, types.intp, word, planes, types.intp), code


@_intrinsic
def add_sixteen(typing: Any, totals: Any, some: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Add to total n, of 16, in how many bits of `some` a, b, c, d have the bits of n."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        before, whole, *planes = arguments
        parts = [whole]
        for plane in planes:
            halves = builder.not_(plane), plane
            parts = [builder.and_(part, half) for part in parts for half in halves]
        found = [
            builder.add(builder.extract_value(before, n), builder.ctpop(part))
            for n, part in enumerate(parts)
        ]
        return context.make_tuple(builder, signature.return_type, found)

    return totals(totals, some, a, b, c, d), code


@_intrinsic
def product(typing: Any, a: Any, b: Any) -> Any:
    """Return the high and the low half of the product of two 64-bit words."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, wide = ir.IntType(64), ir.IntType(128)
        whole = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        high = builder.trunc(builder.lshr(whole, ir.Constant(wide, 64)), word)
        return context.make_tuple(
            builder, signature.return_type, [high, builder.trunc(whole, word)]
        )

    return _pair(types.uint64, 2)(types.uint64, types.uint64), code
