"""Fetch memory ahead of its use, in compiled loops that read it in an order that no processor foresees."""

from typing import no_type_check

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

READ, KEEP_NEAR, DATA = 0, 3, 1
"""Arguments of LLVM's `llvm.prefetch` (LLVM Language Reference Manual): to be read, kept in all caches, no code."""


@intrinsic
@no_type_check
def prefetch(typing_context, array, place):
    """Ask for `array[place]`, of one axis without gaps, and go on without waiting. It changes no value."""

    def lowered(context, builder, signature, arguments):
        items = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(builder.gep(items.data, [arguments[1]]), pointer)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(fetch, [address, *(number(argument) for argument in (READ, KEEP_NEAR, DATA))])
        return context.get_dummy_value()

    return types.void(array, place), lowered
