"""Triton twins, one file a kernel: kernel, forward and backward functions, autograd function, public
function.

Imported by ``ops.py`` only when a twin runs, because triton exists on Linux only.
"""
