"""Benchmarks: the workloads, the peers, the machine's limits, and the comparison that `fastrnn bench` runs.

    workloads   what is computed: one list of rows, their operations, their data and the answer that is right
    peers       who computes it: fastrnn and other libraries behind one small interface
    limits      what the machine allows: measured, and the least time that a workload can take
    worker      a process that runs one peer, and its remote control
    compare     the comparison: every peer in a process of its own, rounds interleaved
    report      the table, Markdown and JSON
    plots       the charts

`bench/` in the source tree runs the same workloads and peers in pytest-benchmark.
"""
