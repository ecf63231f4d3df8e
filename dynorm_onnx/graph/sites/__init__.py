"""The norms of a model: found, proved, named, chosen.

`find` has find_sites(): candidates of each form are read, what was read of pieces is proved by running them
(`extract`, `proof`), and given the names of the modules that they were (`names`). `select` chooses by --only and
--keep, and leaves what no function can replace.
"""
