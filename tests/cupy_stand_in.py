"""A module that behaves as CuPy does towards the code that calls it, and computes with NumPy.

It says whether code would run on a device: it has CuPy's names and parameters and no others (read
off CuPy 14.2, in data/cupy_names.txt), it refuses what CuPy refuses (NumPy arrays as operands,
conversion to NumPy without `get`, `where=` in a ufunc), and it keeps CuPy's habits: a reduction or
a single element is a 0-d array, on the device.  Its kernels are compiled for the host, by a C
compiler.  It says nothing about a device's arithmetic or speed.
"""

import ctypes
import functools
import operator
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

from precsim.backend import grid

NAMES = dict(
    line.split(" ", 1)
    for line in (Path(__file__).parent / "data/cupy_names.txt").read_text().splitlines()[1:]
)
CREATE = {"array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray", "copyto"}
"""Functions that take NumPy arrays to the device."""
UFUNC_PARAMETERS = {"out", "casting", "dtype"}
UFUNC_METHODS = {"at", "outer", "reduce", "accumulate", "reduceat"}
PLAIN = {"shape", "dtype", "size", "ndim", "nbytes", "itemsize", "strides", "flags", "base"}
SYNCHRONISE = {"get", "item", "tolist", "tobytes"}
"""Methods that bring values off the device."""


class ndarray:
    """An array on the device that is not there; `_a` are its values."""

    __slots__ = ("_a",)
    __array_priority__ = 100

    def __init__(self, values):
        self._a = np.asarray(values)

    def __array__(self, *args, **kwargs):
        msg = "Implicit conversion to a NumPy array is not allowed. Please use `.get()`"
        raise TypeError(msg)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method == "__call__":
            return _call_ufunc(ufunc.__name__, *inputs, **kwargs)
        return _ufunc_method(ufunc.__name__, method)(*inputs, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        return getattr(sys.modules["cupy"], function.__name__)(*args, **kwargs)

    def __getattr__(self, name):
        if f"ndarray.{name}" not in NAMES:
            msg = f"'cupy.ndarray' object has no attribute {name!r}"
            raise AttributeError(msg)
        if name == "get":
            return lambda: self._a.copy()
        found = getattr(self._a, name)
        if name in PLAIN:
            return found
        if not callable(found):
            return ndarray(found)
        if name in SYNCHRONISE:
            return found
        return lambda *args, **kwargs: _wrapped(found(*_values(args), **_values(kwargs)))

    def __setattr__(self, name, value):
        if name == "_a":
            object.__setattr__(self, name, value)
        else:
            setattr(self._a, name, value)

    def __getitem__(self, index):
        return ndarray(self._a[_values(index)])

    def __setitem__(self, index, value):
        self._a[_values(index)] = _values(value)

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        return (ndarray(row) for row in self._a)

    def __repr__(self):
        return repr(self._a)

    __hash__ = None


ndarray.__module__ = "cupy._core.core"


def _convert(kind):
    return lambda self: kind(self._a)


for _kind in (bool, int, float, complex, operator.index):
    setattr(ndarray, f"__{_kind.__name__}__", _convert(_kind))


def _binary(symbol, *, swapped=False, in_place=False):
    function = getattr(operator, symbol)

    def call(self, other):
        other = _values(other)
        pair = (other, self._a) if swapped else (self._a, other)
        result = function(*pair)
        if in_place:
            self._a = result
            return self
        return _wrapped(result)

    return call


for _symbol in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_",
                "xor", "lshift", "rshift"):  # fmt: skip
    _name = _symbol.rstrip("_")
    setattr(ndarray, f"__{_name}__", _binary(_symbol))
    setattr(ndarray, f"__r{_name}__", _binary(_symbol, swapped=True))
    if _name != "matmul":
        setattr(ndarray, f"__i{_name}__", _binary(f"i{_name}", in_place=True))
for _symbol in ("lt", "le", "eq", "ne", "gt", "ge"):
    setattr(ndarray, f"__{_symbol}__", _binary(_symbol))


def _unary(symbol):
    function = getattr(operator, symbol)
    return lambda self: ndarray(function(self._a))


for _symbol in ("neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{_symbol}__", _unary(_symbol))


def _values(x, *, numpy_too=False):
    """Return NumPy's view of operands, refusing those that CuPy would refuse."""
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray) and not numpy_too:
        msg = "Unsupported type <class 'numpy.ndarray'>"
        raise TypeError(msg)
    if type(x) in (list, tuple):
        return type(x)(_values(one, numpy_too=numpy_too) for one in x)
    if isinstance(x, dict):
        return {name: _values(one, numpy_too=numpy_too) for name, one in x.items()}
    return x


def _wrapped(x):
    if isinstance(x, np.ndarray | np.generic):
        return ndarray(x)
    return type(x)(_wrapped(one) for one in x) if type(x) in (list, tuple) else x


def _call_ufunc(name, *inputs, **kwargs):
    if unknown := kwargs.keys() - UFUNC_PARAMETERS:
        msg = f"Wrong arguments {unknown} for the ufunc {name}"
        raise TypeError(msg)
    if NAMES.get(name) != "ufunc":
        msg = f"cupy has no ufunc {name}"
        raise TypeError(msg)
    out = kwargs.get("out")
    with np.errstate(all="ignore"):  # a device reports none
        result = _wrapped(getattr(np, name)(*_values(inputs), **_values(kwargs)))
    if out is None:
        return result
    return out[0] if isinstance(out, tuple) and len(out) == 1 else out


def _ufunc_method(name, method):
    if method not in UFUNC_METHODS:
        msg = f"cupy's ufunc {name} has no {method}"
        raise AttributeError(msg)
    real = getattr(getattr(np, name), method)
    return lambda *args, **kwargs: _wrapped(real(*_values(args), **_values(kwargs)))


def _function(name, parameters):
    real = getattr(np, name)
    if parameters == "ufunc":
        call = functools.partial(_call_ufunc, name)
        for method in UFUNC_METHODS if isinstance(real, np.ufunc) else ():
            setattr(call, method, _ufunc_method(name, method))
        return call
    known = parameters.split(",")

    def call(*args, **kwargs):
        if "*" not in parameters and (wrong := kwargs.keys() - set(known)):
            msg = f"cupy.{name}() got unexpected keyword arguments {wrong}"
            raise TypeError(msg)
        create = name in CREATE
        with np.errstate(all="ignore"):
            result = real(*_values(args, numpy_too=create), **_values(kwargs, numpy_too=create))
        return None if result is None else _wrapped(result)

    return call


C_NAMES = {
    "float32": "float", "float64": "double", "int32": "int", "int64": "long long",
    "uint32": "unsigned int", "uint64": "unsigned long long",
}  # fmt: skip

C_KINDS = {
    "float": np.dtype("f4"), "double": np.dtype("f8"), "int": np.dtype("i4"),
    "long": np.dtype("i8"), "word32": np.dtype("u4"), "word64": np.dtype("u8"),
}  # fmt: skip

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


class ElementwiseKernel:
    """A C expression for every element i of broadcast arrays, or of `size` threads on raw ones."""

    def __init__(self, in_params, out_params, operation, name, *, no_return, preamble, options):
        assert no_return
        assert set(options) <= {"--fmad=false"}
        params = [*in_params.split(","), *out_params.split(",")]
        self.params = [param.split() for param in params]  # [("raw",) type, name]
        self.outputs = len(out_params.split(","))
        self.operation, self.name = operation, name
        self.preamble = preamble.replace("__device__", "static")

    def __call__(self, *args, size=None):
        assert len(args) == len(self.params), f"{self.name} takes {len(self.params)} arguments"
        values = [_values(arg) for arg in args]
        raw = [param[0] == "raw" for param in self.params]
        whole = [v for v, r in zip(values, raw, strict=True) if isinstance(v, np.ndarray) and not r]
        shape = np.broadcast_shapes(*(v.shape for v in whole)) if whole else (size,)
        types, passed, taken = {}, [], []
        for value, (*_, kind, _name), is_raw in zip(values, self.params, raw, strict=True):
            if isinstance(value, np.ndarray) and kind not in C_NAMES:
                assert types.setdefault(kind, str(value.dtype)) == str(value.dtype)
            dtype = np.dtype(types.get(kind, kind))
            value = np.asarray(value)
            assert value.ndim == 0 or value.dtype == dtype, f"{_name} must be {dtype}"
            alone = value.ndim == 0  # one number for all elements
            as_seen = value if is_raw or alone else np.broadcast_to(value, shape)
            copy = np.ascontiguousarray(as_seen, dtype)
            passed.append(copy)
            taken.append((kind, _name, is_raw, dtype, "0" if alone else "i"))
        run = _compiled(self._source(taken), self.name)
        run(
            ctypes.c_longlong(int(np.prod(shape))),
            *(c.ctypes.data_as(ctypes.c_void_p) for c in passed),
        )
        for value, copy in list(zip(values, passed, strict=True))[-self.outputs :]:
            value[...] = copy.reshape(value.shape)

    def _source(self, taken):
        pointers = ", ".join(f"{C_NAMES[str(d)]} *{n}_" for _, n, _, d, _ in taken)
        into = [f"{C_NAMES[str(d)]} {n} = {n}_[{at}];" for _, n, r, d, at in taken if not r]
        raw = [f"{C_NAMES[str(d)]} *{n} = {n}_;" for _, n, r, d, _ in taken if r]
        back = [f"{n}_[i] = {n};" for _, n, r, *_ in taken[-self.outputs :] if not r]
        types = {k: C_NAMES[str(d)] for k, _, _, d, _ in taken if k not in C_NAMES}
        return "\n".join([
            "#include <math.h>", *(f"typedef {c} {k};" for k, c in types.items()), self.preamble,
            f"void {self.name}(long long size_, {pointers}) {{", *raw,
            "for (long long i = 0; i < size_; i++) {", *into, f"{self.operation};", *back, "}}",
        ])  # fmt: skip


class RawKernel:
    """C code of a kernel of blocks of threads, which run here one after the other.

    Unlike CuPy, it checks that the arguments are those that the code declares.
    """

    def __init__(self, code, name, options=()):
        assert set(options) <= {"--fmad=false"}
        assert code.startswith(grid.DEVICE)
        self.name, self.code = name, on_host(code.removeprefix(grid.DEVICE))
        declared = re.search(rf"PRECSIM_KERNEL {name}\(([^)]*)\)", code)[1]
        self.params = [param.split() for param in declared.split(",")]

    def __call__(self, blocks, threads, args, *, shared_mem=0):
        assert threads == (grid.THREADS,)
        assert shared_mem == 0
        assert len(args) == len(self.params), f"{self.name} takes {len(self.params)} arguments"
        passed = [_passed(arg, param) for arg, param in zip(args, self.params, strict=True)]
        run = _compiled(self.code, f"{self.name}_all")
        run(ctypes.c_longlong(*blocks), *passed)


def _passed(arg, declared):
    """Return what ctypes passes for an argument of a kernel, declared as (... type, name)."""
    *_, kind, name = declared
    if isinstance(arg, ndarray):
        assert name.startswith("*"), f"{name} is no array"
        assert arg.flags.c_contiguous, f"{name}: a kernel does not see strides"
        assert C_KINDS[kind] == arg.dtype, f"{name} must be {kind}, not {arg.dtype}"
        return arg._a.ctypes.data_as(ctypes.c_void_p)
    assert not name.startswith("*"), f"{name} is an array"
    assert isinstance(arg, np.generic), f"{name}: how wide is a {type(arg)}?"
    assert C_KINDS[kind] == arg.dtype, f"{name} must be {kind}, not {arg.dtype}"
    return np.ctypeslib.as_ctypes_type(arg.dtype)(arg.item())


def on_host(code, *, backward=False):
    """Return the C of kernels of blocks of threads (`precsim.backend.grid`) that a host runs.

    NAME_all runs kernel NAME on a number of blocks, its first argument.  `backward`: the last thread
    and the last block come first, which makes no difference where threads wait for each other.
    """
    first, last, step = ("{n} - 1", ">= 0", "--") if backward else ("0", "< {n}", "++")

    def loop(variable, n):
        return f"for ({variable} = {first}; {variable.split()[-1]} {last}; {variable.split()[-1]}{step})".format(
            n=n
        )

    def everywhere(found):
        name, params = found[1], found[2]
        names = ", ".join(param.split()[-1].lstrip("*") for param in params.split(","))
        run = f"void {name}_all(long long blocks_, {params}) {{ this_grid_ = blocks_; "
        run += loop("this_block_", "blocks_") + f" {name}({names}); }}"
        return f"static void {name}({params});\n{run}\nstatic void {name}({params})"

    kernels = re.sub(r"PRECSIM_KERNEL (\w+)\(([^)]*)\)", everywhere, code)
    return f"""
#include <math.h>
#define PRECSIM static
#define PRECSIM_SHARED static
#define PRECSIM_BLOCK this_block_
#define PRECSIM_BLOCKS this_grid_
#define PRECSIM_THREADS(t) {loop("int t", grid.THREADS)} {{
#define PRECSIM_WAIT }}
#define PRECSIM_ADD(place, value) (*(place) += (value))
#define PRECSIM_RAISE(place, value) (*(place) = *(place) < (value) ? (value) : *(place))
static long long this_block_, this_grid_;
{kernels}"""


@functools.cache
def _compiled(source, name):
    assert COMPILER is not None, (
        "the stand-in for a device compiles its kernels: no C compiler here"
    )
    folder = Path(tempfile.mkdtemp(prefix="precsim-stand-in-"))
    (folder / "kernel.c").write_text(source)
    command = [COMPILER, "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", folder / "kernel.so",
               folder / "kernel.c", "-lm"]  # fmt: skip
    subprocess.run(command, check=True)
    function = getattr(ctypes.CDLL(str(folder / "kernel.so")), name)
    shutil.rmtree(folder)
    function.restype = None
    return function


def module():
    """Return a fresh stand-in, to be put into `sys.modules` as "cupy"."""
    cupy = ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    cupy.ndarray = ndarray
    cupy.ElementwiseKernel, cupy.RawKernel = ElementwiseKernel, RawKernel
    cupy.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            getDeviceCount=lambda: 1,
            CUDARuntimeError=RuntimeError,
            deviceSynchronize=lambda: None,
            getDeviceProperties=lambda _: {"name": b"a stand-in"},
        )
    )
    for name, parameters in NAMES.items():
        if name.startswith("ndarray") or not hasattr(np, name):
            continue
        plain = parameters in ("class", "value")
        setattr(cupy, name, getattr(np, name) if plain else _function(name, parameters))
    cupy.asnumpy = lambda x: x.get()
    cupy.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None)
    return cupy
