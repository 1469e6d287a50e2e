"""The five methods on the embedded base, before and after, and beside diffusers' own example scripts.

`python -m bench.methods` (or `make bench-methods`) trains every run of the plan that is not there yet, each in a
process of its own, draws and scores with one code for all, and writes a report with contact sheets. The scripts of the
peer are run from a checkout that the user names; nothing of them is in this repository.
"""
