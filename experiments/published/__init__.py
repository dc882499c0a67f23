"""Published measurements of operators, collectives, power and energy: one reader a source.

A folder is laid out as ``neusight/gemm.csv``, ``deepbench/gemm.csv`` and so on; a reader yields nothing where its file
is not there.
"""
