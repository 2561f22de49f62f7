"""WHEN A RELEASE IS SWITCHED BY RULE: what releases did, how they compare, what follows, and who does it.

windows.py       what a release did, from the inference log
sequential.py    differences with intervals that hold whenever one looks
judging.py       the rules of a project held against that: a pure function
acting.py        promote, end a trial, roll back; each with its ledger entries
watch.py         the process that does this for an environment, beside its supervisor
watching.py      the supervisor's side: that process runs while there is a rule
comparison.py    the report of a trial
"""
