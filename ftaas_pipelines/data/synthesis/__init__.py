"""Rows that a model writes: made from seeds or documents, or labels for texts that have none.

endpoint.py      the one module that speaks HTTP: an OpenAI-compatible chat endpoint
prompts.py       the prompts, each a file in prompts/, named in every row by name and sha256
material.py      what goes in: the project's own rows, seeds, passages of documents
methods.py       self-instruct, from documents, evolve: one attempt each
replies.py       what a reply says: pairs, or one of some labels
known.py         whether a row says something new
work.py          attempts in waves, a budget, a file that a killed run goes on with
beginning.py     from what a person asks for to attempts of one method
generate.py      new rows
label.py         labels for rows
"""
