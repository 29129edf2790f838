"""The fault campaign: a tiny run is hurt in every way we know, and has to end as if unhurt.

    make chaos          # all of it
    python -m tests.chaos T1 soak

`__main__` lists the rows, one file per group of faults has their functions, `campaign` runs and
reports them. A run under test is `faulty_train.py`: the real train.py, in whose process `hooks`
makes the faults of a plan happen at exact steps and places (`faults`). The other side, which
starts such runs and compares what they leave, is `runs`.
"""
