"""The two stages of an evaluation; each can be run alone, in a loop, as bench/ and tests do.

They are modules of their own because decoding processes must not load PyTorch.
"""
