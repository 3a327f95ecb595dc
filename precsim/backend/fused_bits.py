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
_declare: Any = cgutils.get_or_insert_function
_variable: Any = cgutils.alloca_once_value
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


@inlined
def magnitude_mask(bits: Any) -> Any:
    """Return the mask of all bits but the sign, for bits like those in an array."""
    zero = like(0, bits[0])
    return like(like(zero - like(1, zero), zero) >> like(1, zero), zero)


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


def _sources(builder: Any) -> Any:
    """Return what says of a load that it reads a source, and of a store that it changes none."""
    module = builder.module
    domain = module.add_metadata(["precsim"])
    return module.add_metadata([module.add_metadata(["sources", domain])])


@_intrinsic
def take(typing: Any, source: Any, place: Any) -> Any:
    """Return an element of a flat array that no `put` changes."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(source)(context, builder, arguments[0]).data
        loaded = builder.load(builder.gep(data, [arguments[1]]))
        loaded.align = source.dtype.bitwidth // 8
        loaded.set_metadata("alias.scope", _sources(builder))
        return loaded

    return source.dtype(source, types.intp), code


@_intrinsic
def put(typing: Any, target: Any, place: Any, value: Any) -> Any:
    """Write an element of a flat array, in which is nothing that a `take` reads.

    A compiler that is not told asks the addresses, before each run of elements that it does at once.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(target)(context, builder, arguments[0]).data
        stored = builder.store(arguments[2], builder.gep(data, [arguments[1]]))
        stored.align = target.dtype.bitwidth // 8
        stored.set_metadata("noalias", _sources(builder))
        return context.get_dummy_value()

    return types.none(target, types.intp, target.dtype), code


LANES = 16
"""Elements that are loaded, or written, at once."""
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


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call one of LLVM's own functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = _declare(builder.module, kind, f"llvm.{name}")
    return builder.call(function, arguments)


def _load(builder: Any, place: Any, vector: Any, count: Any = None) -> Any:
    """Return the elements at a place: all, or the first so many, and zeros."""
    size = vector.element.width // 8
    if count is None:
        loaded = builder.load(place)
        loaded.align = size
        return loaded
    name = f"masked.load.v{vector.count}i{vector.element.width}.p0"
    mask, align = _first(builder, vector, count), ir.Constant(ir.IntType(32), size)
    return _call(builder, name, vector, place, align, mask, ir.Constant(vector, None))


@_intrinsic
def fetch(typing: Any, array: Any, start: Any) -> Any:
    """Have `LANES` elements from a place in a flat array on, or beyond it, on their way to the caches."""
    line = 64 // (array.dtype.bitwidth // 8)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, first = _lanes(context, builder, arguments[0], array, arguments[1], line)
        how = [ir.Constant(ir.IntType(32), number) for number in (0, 3, 1)]  # to read, again, data
        for number in range(LANES // line):
            there = builder.gep(first, [ir.Constant(ir.IntType(32), number)])
            there = builder.bitcast(there, ir.IntType(8).as_pointer())
            _call(builder, "prefetch.p0", ir.VoidType(), there, *how)
        return context.get_dummy_value()

    return types.none(array, types.intp), code


@_intrinsic
def spread(typing: Any, array: Any, start: Any, value: Any) -> Any:
    """Write a number to `LANES` elements of a flat array."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, place = _lanes(context, builder, arguments[0], array, arguments[1])
        stored = builder.store(_all(builder, vector, arguments[2]), place)
        stored.align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.none(array, types.intp, array.dtype), code


def _first(builder: Any, vector: Any, count: Any) -> Any:
    """Return a mask of the first so many elements."""
    places = ir.Constant(ir.VectorType(count.type, vector.count), list(range(vector.count)))
    return builder.icmp_signed("<", places, _all(builder, places.type, count))


def _larger(builder: Any, one: Any, other: Any) -> Any:
    """Return the larger elements of two vectors."""
    name = f"umax.v{one.type.count}i{one.type.element.width}"
    return _call(builder, name, one.type, one, other)


def _run(context: Any, builder: Any, kind: Any, array: Any, start: Any, size: Any) -> Any:
    """Return a vector of magnitudes, of which the largest is the largest of so many elements.

    Those after the last whole vector are left out.
    """
    vector, _ = _lanes(context, builder, array, kind, start)
    magnitude = ir.Constant(vector, [(1 << vector.element.width - 1) - 1] * LANES)
    top = _variable(builder, ir.Constant(vector, None))
    lanes = ir.Constant(size.type, LANES)
    with cgutils.for_range(builder, builder.sdiv(size, lanes)) as loop:
        at = builder.add(start, builder.mul(loop.index, lanes))
        loaded = _load(builder, _lanes(context, builder, array, kind, at)[1], vector)
        found = _larger(builder, builder.load(top), builder.and_(loaded, magnitude))
        builder.store(found, top)
    return builder.load(top)


@_intrinsic
def find_largest(typing: Any, bits: Any, start: Any, size: Any) -> Any:
    """Return the largest magnitude of a run of so many elements."""
    word = bits.dtype

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, size = arguments
        found = _run(context, builder, bits, array, start, size)
        vector, lanes = found.type, ir.Constant(size.type, LANES)
        top = _variable(builder, found)
        rest = builder.srem(size, lanes)
        with builder.if_then(builder.icmp_signed(">", rest, ir.Constant(rest.type, 0))):
            at = builder.sub(builder.add(start, size), rest)
            _, there = _lanes(context, builder, array, bits, at)
            magnitude = ir.Constant(vector, [(1 << word.bitwidth - 1) - 1] * LANES)
            loaded = builder.and_(_load(builder, there, vector, rest), magnitude)
            builder.store(_larger(builder, found, loaded), top)
        name = f"vector.reduce.umax.v{LANES}i{word.bitwidth}"
        return _call(builder, name, vector.element, builder.load(top))

    return word(bits, types.intp, types.intp), code


@_intrinsic
def find_largest_of_each(
    typing: Any, bits: Any, start: Any, width: Any, found: Any, place: Any
) -> Any:
    """Find the largest magnitude of each of `LANES` runs side by side, or what was found before.

    The width of a run is a multiple of `LANES`.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, width, target, place = arguments

        def halved(number: int, count: int) -> Any:
            """Of so many runs, the larger ones of neighbouring elements, until each has one."""
            if count == 1:
                at = builder.add(start, builder.mul(width, ir.Constant(width.type, number)))
                return _run(context, builder, bits, array, at, width)
            half = count // 2
            one, other = halved(number, half), halved(number + half, half)
            index = ir.VectorType(ir.IntType(32), LANES)
            even, odd = (ir.Constant(index, list(range(k, 2 * LANES, 2))) for k in range(2))
            return _larger(
                builder,
                builder.shuffle_vector(one, other, even),
                builder.shuffle_vector(one, other, odd),
            )

        vector, there = _lanes(context, builder, target, found, place)
        largest = _larger(builder, _load(builder, there, vector), halved(0, LANES))
        builder.store(largest, there).align = vector.element.width // 8
        return context.get_dummy_value()

    return types.none(bits, types.intp, types.intp, found, types.intp), code


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
