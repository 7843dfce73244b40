"""Preference data to token ids, with an exact account of every row and token.

rows       what a file brings, or drops: files opens, json_rows and table_rows read; sources names them, factory
           knows LLaMA-Factory's entries
example    a record as text: formats finds its shape, parsers and fields read it
encode     a record as tokens: templates renders, vocabulary tokenises, coding keeps each piece's fate
stream     sources -> examples -> tokens as they come; ledger accounts, lengths measures, review does both
read       a Dataset for training, kept in a store by content
check      what is wrong with the texts: survey remembers, near finds likenesses, wording and intervals judge
convert    a data set rewritten: transform changes it, write and sinks put it into files
"""
