"""Golden messages: how each looked on the wire when it was made.

`python -m tests.golden` writes what is missing: files of new messages, the hash of a schema that has changed, and an
example with its new fields. Examples that are there stay for ever, since the log may hold such messages: one that
does not decode any more needs an upcaster, not another example.
"""
