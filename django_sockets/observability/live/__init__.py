"""All processes at one time: the picture that the live page and `sockets top` show.

- `watching`: asks all processes again and again.
- `overview`: makes one picture from their answers.
"""
