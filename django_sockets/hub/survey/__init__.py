"""The survey: a question on the control channel that every process with connections answers.

- `messages`: the question, and the answer.
- `listener`: answers for one hub.
- `report`: the content of an answer.
- `asking`: asks, and collects the answers.
"""
